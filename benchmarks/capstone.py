"""The score of `course_lib train` on the digits: five seeds of folds, shuffled and by writer, one network and all of them.

python benchmarks/capstone.py [--quick] [--seeds N] [--members N]

Each seed deals the folds anew (by writer: whole writers at random) and brings its own weights and augmentation; the settings
are the defaults of the command; ink and views among them were chosen on writers 0 to 6, in other folds (lesson 26). All is out of
fold; the temperature of a fold comes from the other folds. Reported are mean, standard deviation, smallest and largest value
over the seeds, and processor time with one thread. "unseen" are the writers from 7, whose scores chose nothing: they are
scored in the same folds by writer. Results go to results/capstone.json, and the table that lesson 26 shows to
course_lib/results/capstone.csv.
"""
import argparse
import json
import warnings
from dataclasses import asdict, replace

warnings.filterwarnings('ignore')

import torch
from _racing import save

from course_lib.capstone import RESULTS, measure_run
from course_lib.tools.folds import Settings

# (protocol, goal for the accuracy of the whole run, goal for the seconds of one seed)
GOALS = [('shuffled', .998, 60), ('by writer', .992, None)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='one network of few epochs, two seeds; for a look, not for the record')
    parser.add_argument('--seeds', type=int, default=None, help='seeds of folds (5, or 2 with --quick)')
    parser.add_argument('--members', type=int, default=None, help='networks a fold (the default of the command)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    s = replace(Settings(), folds=3, epochs=4, members=1) if args.quick else Settings()
    if args.members: s = replace(s, members=args.members)
    table = measure_run(s, range(args.seeds or (2 if args.quick else 5)), tell=lambda line: print(line, flush=True))

    summary = table.groupby(['protocol', 'stage'], sort=False)[['accuracy', 'errors', 'log_loss', 'ece', 'seconds']].agg(['mean', 'std', 'min', 'max'])
    print(f'\n{"":42} {"accuracy":>18} {"errors":>8} {"log loss":>9} {"ECE":>7} {"seconds":>8}')
    for (protocol, stage), row in summary.iterrows():
        print(f'{protocol + ", " + stage:42} {row["accuracy", "mean"]:9.4f} ± {row["accuracy", "std"]:.4f} {row["errors", "mean"]:8.1f} {row["log_loss", "mean"]:9.4f} {row["ece", "mean"]:7.4f} {row["seconds", "mean"]:8.1f}')
    goals = {}
    for protocol, accuracy, seconds in GOALS:
        row = summary.loc[(protocol, 'calibrated')]
        goals[protocol] = dict(accuracy=accuracy, seconds=seconds, reached=bool(row['accuracy', 'mean'] >= accuracy and (seconds is None or row['seconds', 'mean'] <= seconds)))
        print(f'{protocol}: goal {accuracy}' + (f' in {seconds} s' if seconds else '') + f': {"reached" if goals[protocol]["reached"] else "not reached"}')

    save('capstone', args.quick, ('torch', 'fastai', 'scikit-learn', 'numpy'), settings=asdict(s), goals=goals, rows=json.loads(table.round(6).to_json(orient='records')),
         summary={f'{p}, {stage}': {f'{a} {b}': round(float(v), 6) for (a, b), v in row.items() if v == v} for (p, stage), row in summary.iterrows()})
    if not args.quick:
        table.round(6).to_csv(RESULTS, index=False)
        print(f'written: {RESULTS.name} of lesson 26')


if __name__ == '__main__': main()
