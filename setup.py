"Builds the package from settings.ini (metadata, dependencies) and course_lib/__init__.py (version)."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


def lines(text): return [o.strip() for o in text.strip().splitlines() if o.strip()]


extras = {name: lines(reqs) for name, reqs in ini['extras'].items() if name not in ini.defaults()}
notebooks = {'course_lib.notebooks': 'nbs', 'course_lib.notebooks.exercises': 'nbs/exercises'}

setup(
    version=re.search(r'^__version__ = "(.+)"', (here/'course_lib/__init__.py').read_text(), re.M)[1],
    author=cfg['author'], license=cfg['license'], keywords=cfg['keywords'].split(', '),
    classifiers=lines(cfg['classifiers']), python_requires=f">={cfg['min_python']}",
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    install_requires=lines(cfg['requirements']), extras_require=extras,
    packages=find_packages(include=['course_lib', 'course_lib.*']) + list(notebooks), package_dir=notebooks,
    package_data={'course_lib': ['weights/*.safetensors', 'results/*.csv', 'exercises/*.json'], **{name: ['*.ipynb'] for name in notebooks}},
    entry_points={'console_scripts': ['course_lib = course_lib.tools.cli:main'],
                  'nbdev': ['course_lib = course_lib._modidx:d']},
)
