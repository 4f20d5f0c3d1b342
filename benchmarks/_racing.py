"""What every benchmark needs: entries that take turns, ratios within a round, and a record of the machine and the versions."""
import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path

RESULTS = Path(__file__).parent/'results'


def clocks():
    "Seconds on the wall, and of the processor; worker processes count once they have ended"
    return time.perf_counter(), time.process_time() + sum(os.times()[2:4])


def race(entries, rounds, look=lambda name, result: None):
    "{name: [(seconds, processor seconds) of one run, …]} of {name: run or (run, times)}. The entries take turns; the first round warms up, and `look` sees its results"
    seconds = {name: [] for name in entries}
    for r in range(rounds + 1):
        for name, entry in entries.items():
            run, times = entry if isinstance(entry, tuple) else (entry, 1)
            start = clocks()
            for _ in range(times): result = run()
            seconds[name].append([(b - a)/times for a, b in zip(start, clocks())])
            if not r: look(name, result)
    return {name: s[1:] for name, s in seconds.items()}


def options(doc, rounds, rounds_quick, what):
    "(rounds, quick?) from the command line"
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help=f'fewer {what} and rounds; for a look, not for the record')
    parser.add_argument('--rounds', type=int, default=None, help=f'interleaved rounds ({rounds}, or {rounds_quick} with --quick)')
    args = parser.parse_args()
    return args.rounds or (rounds_quick if args.quick else rounds), args.quick


def speeds(seconds, unit, of=lambda name, wall: 1000*wall, digits=4):
    "Print and return the median and the range of each entry; `of` turns (name, seconds) into the unit, milliseconds if not given"
    wide, table = max(48, len(unit), *map(len, seconds)), {}
    print(f'{unit:{wide}} {"median":>12} {"lowest":>12} {"highest":>12}')
    for name, rounds in seconds.items():
        values = [of(name, wall) for wall, _ in rounds]
        table[name] = dict(median=statistics.median(values), lowest=min(values), highest=max(values))
        print(f'{name:{wide}} ' + ' '.join(f'{v:12,.{digits}f}' for v in table[name].values()))
    return table


def ratios(seconds, goals):
    "Print and return how many times as fast ours is as what is beside it, for each goal (what, ours, beside, at least; None where no goal was set)"
    wide, table = max(48, *(len(what) for what, *_ in goals)), {}
    print(f'\n{"ratio (median of rounds)":{wide}} {"median":>8} {"min":>8} {"max":>8} {"goal":>6}  {"reached":8} {"in processor time":>18}')
    for what, ours, beside, goal in goals:
        wall, processor = ([b[k]/a[k] for a, b in zip(seconds[ours], seconds[beside])] for k in (0, 1))
        middle = statistics.median(wall)
        table[what] = dict(median=middle, min=min(wall), max=max(wall), goal=goal, reached=None if goal is None else middle >= goal, processor=statistics.median(processor))
        verdict = '' if goal is None else 'yes' if middle >= goal else 'no'
        print(f'{what:{wide}} {middle:8.2f} {min(wall):8.2f} {max(wall):8.2f} {"" if goal is None else f"{goal:.2g}":>6}  {verdict:8} {table[what]["processor"]:18.2f}')
    return table


def limits(values, goals):
    "Print and return how each of our entries keeps its limit; values: {name: one number a round}, goals: (what, name, unit, at most; None where no limit was set)"
    wide, table = max(48, *(len(what) for what, *_ in goals)), {}
    print(f'\n{"limit (median of rounds)":{wide}} {"median":>8} {"min":>8} {"max":>8} {"limit":>6}  {"kept":8} unit')
    for what, name, unit, limit in goals:
        middle = statistics.median(values[name])
        table[what] = dict(median=middle, min=min(values[name]), max=max(values[name]), unit=unit, limit=limit, reached=None if limit is None else middle <= limit)
        verdict = '' if limit is None else 'yes' if middle <= limit else 'no'
        print(f'{what:{wide}} {middle:8.3f} {min(values[name]):8.3f} {max(values[name]):8.3f} {limit or "":>6}  {verdict:8} {unit}')
    return table


def save(name, quick, packages, **record):
    "Write results/NAME.json: the record with date, machine and versions; --quick leaves the file as it was"
    out = RESULTS/f'{name}.json'
    if quick: return print(f'\n--quick: {out.name} is left as it was')
    versions = {p: importlib.metadata.version(p) for p in packages}
    about = dict(date=datetime.date.today().isoformat(), python=platform.python_version(), cpus=os.cpu_count(), torch_threads=1, versions=versions)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(about | record, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    print(f'\nwritten: results/{out.name}')
