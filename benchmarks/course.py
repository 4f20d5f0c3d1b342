"""How long the whole course takes in quick size: every notebook as `make test` runs it, two at a time.

python benchmarks/course.py [--quick]

There is no peer beside it: no other course says how long it takes. Seconds are of the wall, imports included, on two busy
cores. This is the one benchmark that takes longer than three minutes; --quick takes lesson 00. Results go to
results/course.json.
"""
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from _racing import options, save

ROOT = Path(__file__).parent.parent
A_LESSON, ALL = 60, 600   # seconds


def times(expression):
    "{path in nbs: seconds} of the notebooks that pytest's -k finds, and the seconds for all; stops where one fails"
    with tempfile.TemporaryDirectory() as folder:
        report, start = Path(folder)/'report.xml', time.perf_counter()
        command = ['-m', 'pytest', '-q', '-n', '2', '-k', expression, f'--junitxml={report}', 'tests/test_notebooks.py']
        if subprocess.run([sys.executable, *command], cwd=ROOT).returncode: raise SystemExit('A notebook fails; mend it first.')
        whole = time.perf_counter() - start
        cases = ElementTree.parse(report).iter('testcase')
        return {match[1]: float(case.get('time')) for case in cases if (match := re.fullmatch(r'test_notebook\[(.*)\]', case.get('name')))}, whole


def main():
    _, quick = options(__doc__, 1, 1, 'notebooks')
    seconds, whole = times('test_notebook and 00_ and not exercises' if quick else 'test_notebook')
    lessons = {path: s for path, s in sorted(seconds.items()) if re.match(r'\d\d_', path)}
    for path, s in sorted(lessons.items(), key=lambda item: -item[1]): print(f'{path:40} {s:7.1f} s  {"" if s <= A_LESSON else "over a minute"}')
    both = sum(lessons.values())/2
    print(f'\n{len(lessons)} lessons: {sum(lessons.values()):.0f} s, {both:.0f} s on two cores (limit {ALL}: {"kept" if both <= ALL else "not kept"}); all {len(seconds)} notebooks: {whole:.0f} s on two cores')
    found = {'each lesson (the slowest)': dict(median=max(lessons.values()), min=min(lessons.values()), max=max(lessons.values()), unit='s', limit=A_LESSON, reached=max(lessons.values()) <= A_LESSON),
             'all lessons on two cores': dict(median=both, min=both, max=both, unit='s', limit=ALL, reached=both <= ALL)}
    save('course', quick, ('torch', 'fastai'), seconds=dict(sorted(seconds.items())), all_notebooks=whole, limits=found)


if __name__ == '__main__': main()
