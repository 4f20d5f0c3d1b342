"`make lab`, as a learner meets it: JupyterLab in a real browser runs a lesson from top to bottom"
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from counting import NBS
from playwright.sync_api import sync_playwright

ROOT, TOKEN, PATIENCE = NBS.parent, 'lab-test', 240   # seconds
LESSON, IDLE = '00_datasets.ipynb', 'Python 3 (ipykernel) | Idle'
QUIET = '--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-quic'.split()


def missing(what):
    "Without a browser there is nothing to test here; where the tests must be complete, that is a failure"
    (pytest.fail if os.environ.get('CI') else pytest.skip)(f'{what}: the browser test needs it')


@pytest.fixture(scope='module')
def browser():
    "Chromium, from the system or from playwright"
    with sync_playwright() as play:
        path = shutil.which('chromium') or shutil.which('google-chrome') or play.chromium.executable_path
        if not Path(path).exists(): missing('Chromium (apt install chromium, or playwright install chromium)')
        browser = play.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


def wait_until(ready, what):
    "Ask until the answer is true; fail with `what` when patience ends"
    end = time.monotonic() + PATIENCE
    while not (answer := ready()):
        if time.monotonic() > end: pytest.fail(f'{what}: not within {PATIENCE} s')
        time.sleep(2)
    return answer


def answers(url):
    "Does the server answer?"
    try: return urlopen(url, timeout=5).status == 200
    except (URLError, OSError): return False


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "`make lab` on a copy of the notebooks; (its address, the folder)"
    if not shutil.which('make'): missing('make')
    folder = shutil.copytree(NBS, tmp_path_factory.mktemp('lab')/'course', ignore=shutil.ignore_patterns('.*', '_*'))
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    flags = f'--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={TOKEN}'
    command = ['make', 'lab', '-o', f'{sys.prefix}/.ready', f'VENV={sys.prefix}', f'NBS={folder}', f'LAB_FLAGS={flags}']
    with (folder.parent/'log').open('w') as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_until(lambda: server.poll() is not None or answers(f'http://127.0.0.1:{port}/api/status?token={TOKEN}'), 'JupyterLab')
            assert server.poll() is None, (folder.parent/'log').read_text()
            yield f'http://127.0.0.1:{port}', folder
        finally:
            os.killpg(server.pid, signal.SIGTERM)   # make and its JupyterLab, which ends its kernels
            server.wait(60)


def run_all_cells(browser, lab, name):
    "Open a notebook, choose Run > Run All Cells, wait for the idle kernel, save; returns the saved code cells"
    address, folder = lab
    page = browser.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(f'{address}/lab/workspaces/{Path(name).stem}/tree/{name}?token={TOKEN}')   # a workspace of its own: no other notebook is restored
    page.locator('.jp-Notebook .jp-CodeCell').first.wait_for()
    page.get_by_text(IDLE).wait_for()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()

    def finished():
        with page.expect_response(lambda r: r.request.method == 'PUT' and name in r.url): page.locator('.jp-Notebook').first.press('Control+s')
        cells = [c for c in json.loads((folder/name).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code' and c['source']]
        return cells if errors(cells) or not not_run(cells) else None
    cells = wait_until(finished, f'all cells of {name}')
    page.get_by_text(IDLE).wait_for()
    page.close()
    return cells


def not_run(cells): return [i for i, c in enumerate(cells) if c['execution_count'] is None]
def errors(cells): return [i for i, c in enumerate(cells) if any(o['output_type'] == 'error' for o in c['outputs'])]


def test_lesson_runs_in_jupyterlab(browser, lab):
    cells = run_all_cells(browser, lab, LESSON)
    assert len(cells) > 5 and (not_run(cells), errors(cells)) == ([], [])


def test_planted_error_is_seen(browser, lab):
    nb = json.loads((lab[1]/LESSON).read_text(encoding='utf-8'))
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    code[1]['source'] = ['1/0']
    (lab[1]/'planted.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    cells = run_all_cells(browser, lab, 'planted.ipynb')
    assert 1 in errors(cells)   # what follows may have been sent to the kernel already: it fails in its turn, or never runs


def test_first_page_is_the_course(browser, lab):
    page = browser.new_page()
    page.goto(f'{lab[0]}/?token={TOKEN}')
    page.get_by_text(IDLE).wait_for()
    assert page.url.endswith('/lab/tree/index.ipynb') and not page.get_by_text('Would you like to').is_visible()
