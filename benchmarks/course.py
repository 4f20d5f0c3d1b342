"""How long the whole course takes in quick size: every notebook as `make test` runs it, two at a time.

python benchmarks/course.py [--quick] [--report FILE]

There is no peer beside it: no other course says how long it takes. Seconds are of the wall, imports included, on two busy
cores. A lesson that takes more than a minute beside another one (some start processes of their own) runs once more alone.
This is the one benchmark that takes longer than three minutes; --quick takes lesson 00; --report reads what
`make test TESTS=--junitxml=FILE` has measured on its way. Results go to results/course.json.
"""
import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from _racing import save

ROOT = Path(__file__).parent.parent
A_LESSON, ALL = 60, 600   # seconds


def run(expression, report, workers=2):
    "Run the notebooks that pytest's -k finds, two at a time, and write pytest's report; stops where one fails"
    job = [sys.executable, '-m', 'pytest', '-q', '-n', str(workers), '-k', expression, f'--junitxml={report}', 'tests/test_notebooks.py']
    if subprocess.run(job, cwd=ROOT).returncode: raise SystemExit('A notebook fails; mend it first.')


def read(report):
    "{path in nbs: seconds} of pytest's report"
    matches = {re.fullmatch(r'test_notebook\[(.*)\]', case.get('name') or ''): case for case in ElementTree.parse(report).iter('testcase')}
    return {match[1]: float(case.get('time')) for match, case in matches.items() if match}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='lesson 00 only; for a look, not for the record')
    parser.add_argument('--report', type=Path, help='a report of pytest (--junitxml) to read instead of a run')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = args.report or Path(folder)/'report.xml'
        if not args.report: run('test_notebook and 00_ and not exercises' if args.quick else 'test_notebook', report)
        seconds = read(report)
        lessons = {path: s for path, s in sorted(seconds.items()) if re.match(r'\d\d_', path)}
        alone = {}
        for path in [path for path, s in lessons.items() if s > A_LESSON]:
            run(f'test_notebook and {path.removesuffix(".ipynb")} and not exercises', Path(folder)/'alone.xml', workers=1)
            alone |= read(Path(folder)/'alone.xml')
    for path, s in sorted(lessons.items(), key=lambda item: -item[1]): print(f'{path:40} {s:7.1f} s  ' + (f'alone {alone[path]:.1f} s' if path in alone else ''))
    both, slowest = sum(lessons.values())/2, max(alone.get(path, s) for path, s in lessons.items())
    print(f'\n{len(lessons)} lessons: {sum(lessons.values()):.0f} s, {both:.0f} s on two cores (limit {ALL}: {"kept" if both <= ALL else "not kept"}); all {len(seconds)} notebooks: {sum(seconds.values())/2:.0f} s')
    found = {what: dict(median=s, min=s, max=s, unit='s', limit=limit, reached=None if limit is None else s <= limit)
             for what, s, limit in (('the slowest lesson, on its own', slowest, A_LESSON), ('the slowest lesson, beside another one', max(lessons.values()), None), ('all lessons on two cores', both, ALL))}
    save('course', args.quick, ('torch', 'fastai'), seconds=dict(sorted(seconds.items())), alone=alone, limits=found)


if __name__ == '__main__': main()
