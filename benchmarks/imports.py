"""What an import and the command line's --help cost, beside Python, torch and fastai.

python benchmarks/imports.py [--quick] [--rounds N]

Every entry is a fresh Python process. They take turns, round after round; the first round, which fills the disk cache and
writes .pyc files, does not count. A ratio is of whole processes, the start of Python included, as a user waits for it;
the limits in seconds are what comes on top of a bare Python in the same round. Results go to results/imports.json.
"""
import subprocess
import sys

from _racing import limits, options, race, ratios, save, speeds

IMPORTS = {'torch': 'torch', 'course_lib': 'course_lib', 'course_lib.metrics': 'course_lib.metrics', 'course_lib.losses': 'course_lib.losses',
           'course_lib.dataloading': 'course_lib.dataloading', 'fastai loaders': 'fastai.data.core', 'fastai.vision': 'fastai.vision.all', 'torchmetrics': 'torchmetrics'}


def start(*args):
    "Run Python with these arguments; its exit status must be 0"
    return lambda: subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    rounds, quick = options(__doc__, 7, 2, 'entries')
    entries = {'bare Python': start('-c', '')} | {name: start('-c', f'import {module}') for name, module in IMPORTS.items()} | {'course_lib --help': start('-m', 'course_lib', '--help')}
    if quick: entries = {name: run for name, run in entries.items() if name not in ('fastai.vision', 'torchmetrics')}
    seconds = race(entries, rounds)
    table = speeds(seconds, 'seconds', lambda name, wall: wall, 3)
    # a limit of 1.1 times torch's seconds is a goal of 1/1.1 times its speed
    goals = [(f'{name}, over torch', name, 'torch', 1/1.1) for name in ('course_lib.metrics', 'course_lib.losses', 'course_lib.dataloading')]
    goals += [(f'{ours}, over {beside}', ours, beside, None) for ours, beside in (('course_lib.dataloading', 'fastai loaders'), ('course_lib.metrics', 'torchmetrics'), ('course_lib.dataloading', 'fastai.vision')) if beside in seconds]
    on_top = {name: [wall - bare for (wall, _), (bare, _) in zip(runs, seconds['bare Python'])] for name, runs in seconds.items()}
    found, kept = ratios(seconds, goals), limits(on_top, [('import course_lib', 'course_lib', 's', .05), ('course_lib --help', 'course_lib --help', 's', .3)])
    save('imports', quick, ('torch', 'fastai', 'torchmetrics', 'typer'), rounds=rounds, seconds=table, ratios=found, limits=kept)


if __name__ == '__main__': main()
