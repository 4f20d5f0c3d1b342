"The pages: complete, linked, with alt texts, readable without the network; what is missing makes the build fail"
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from counting import NBS, NOTEBOOKS
from course_lib.tools.docs import build_site, html_path, load_pages, site_config, stage
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = NBS.parent


class Page(HTMLParser):
    "What the tests ask a page for: its HTML, its tags as (name, attributes), and its text"
    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.parts = html, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.parts.append(data)

    @property
    def text(self): return ''.join(self.parts)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The course's own pages, as they are without Quarto"
    out = tmp_path_factory.mktemp('site')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('shutil.which', lambda name: None)
        build_site(ROOT, out)
    return {p.relative_to(out).as_posix(): Page(p.read_text(encoding='utf-8')) for p in out.rglob('*.html')}


def test_every_notebook_has_a_page_and_stands_in_the_sidebar(site):
    assert site.keys() == {html_path(p.relative_to(NBS).as_posix()) for p in NOTEBOOKS}
    sidebar = re.search('<nav class="sidebar".*?</nav>', site['index.html'].html, re.S)[0]
    assert sum(tag == 'a' for tag, _ in Page(sidebar).tags) == len(NOTEBOOKS)


def test_every_figure_has_its_alt_text(site):
    images = [image for page in site.values() for tag, image in page.tags if tag == 'img']
    assert len(images) > len(NOTEBOOKS) and all(image['alt'] and 'No description' not in image['alt'] for image in images)


def test_pages_need_nothing_from_the_network(site):
    loaded = [url for page in site.values() for tag, attrs in page.tags if tag in ('script', 'link', 'img', 'iframe') and (url := attrs.get('src') or attrs.get('href'))]
    assert [url for url in loaded if url.startswith(('http', '//'))] == []


def test_solutions_and_hidden_cells_are_not_shown(site):
    for path in NOTEBOOKS:
        page = site[html_path(path.relative_to(NBS).as_posix())].text
        assert not re.search(r'^#\| ', page, re.M), path.name
        if path.parent.name == 'exercises': assert '### BEGIN SOLUTION' not in page, path.name


@pytest.fixture
def project(tmp_path):
    "A small project of one page, its first page made of the cells given"
    def make(*cells):
        for name in 'pyproject.toml', 'settings.ini': (tmp_path/name).write_text((ROOT/name).read_text())
        (tmp_path/'_quarto.yml').write_text('website: {title: T, sidebar: {contents: [index.ipynb]}}\npage-links: []\n')
        (tmp_path/'nbs').mkdir()
        write(new_notebook(cells=[new_markdown_cell('# T'), *cells]), tmp_path/'nbs/index.ipynb')
        return tmp_path
    return make


PNG = new_output('display_data', {'image/png': 'iVBORw0KGgo='})
BAD = {'a dead link': (new_markdown_cell('[x](01_gone.ipynb)'), 'dead link to 01_gone.html'),
       'a dead anchor': (new_markdown_cell('[x](#nowhere)'), 'dead link to #nowhere'),
       'a missing picture': (new_markdown_cell('![x](gone.png)'), 'dead link to gone.png'),
       'a picture without text': (new_markdown_cell('![](gone.png)'), 'image without alt text'),
       'a figure without text': (new_code_cell('plot()', outputs=[PNG]), 'figure without fig-alt'),
       'a figure that is not stored': (new_code_cell('#| fig-alt: a plot\nplot()'), 'no stored figure')}


@pytest.mark.parametrize('cell, message', BAD.values(), ids=BAD)
def test_planted_problem_fails(project, monkeypatch, cell, message):
    monkeypatch.setattr('shutil.which', lambda name: None)
    root = project(cell)
    with pytest.raises(SystemExit, match=message): build_site(root, root/'out')


def test_missing_page_fails(project, monkeypatch):
    monkeypatch.setattr('shutil.which', lambda name: None)
    root = project()
    (root/'_quarto.yml').write_text('website: {title: T, sidebar: {contents: [index.ipynb, 07_gone.ipynb]}}\npage-links: []\n')
    with pytest.raises(SystemExit, match='07_gone.ipynb: in the sidebar'): build_site(root, root/'out')


def test_good_page_builds(project, monkeypatch, capsys):
    monkeypatch.setattr('shutil.which', lambda name: None)
    root = project(new_code_cell('#| fig-alt: a plot\nplot()', outputs=[PNG]), new_markdown_cell('[top](#T), $x^2$'))
    build_site(root, root/'out')
    assert 'Quarto is not installed' in capsys.readouterr().out
    assert '<math' in (root/'out/index.html').read_text()


@pytest.mark.skipif(os.name == 'nt', reason='a shell script')
def test_what_quarto_gets(tmp_path):
    "Everything up to Quarto itself: nbdev processes the staged notebooks; a stand-in keeps it from downloading Quarto"
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin/quarto').write_text('#!/bin/sh\n')
    (tmp_path/'bin/quarto').chmod(0o755)
    (tmp_path/'project').mkdir()
    stage(ROOT, {'tools/env.ipynb': load_pages(NBS/'tools')['env.ipynb']}, site_config(ROOT), tmp_path/'project')
    path = os.pathsep.join([str(tmp_path/'bin'), os.environ['PATH']])
    index = (ROOT/'course_lib/_modidx.py').read_text(encoding='utf-8')
    subprocess.run([Path(sys.executable).parent/'nbdev-proc-nbs'], cwd=tmp_path/'project', env=os.environ | {'PATH': path}, check=True, capture_output=True)
    assert (ROOT/'course_lib/_modidx.py').read_text(encoding='utf-8') == index   # the copy's index is rewritten, never the project's
    front, *cells = json.loads((tmp_path/'project/_proc/tools/env.ipynb').read_text(encoding='utf-8'))['cells']
    code = ''.join(line for c in cells if c['cell_type'] == 'code' for line in c['source'])
    assert 'nbs/tools/env.ipynb' in ''.join(front['source'])
    assert 'def course_size' in code and 'default_exp' not in code and 'show_doc' not in code
