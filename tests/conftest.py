"What all tests share: no network, folders of their own, and flags that choose the costly ones"
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from network import close_network
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent
FLAGS = {'slow': 'takes over a minute', 'cuda': 'needs a GPU', 'net': 'needs the network'}
TMP = TemporaryDirectory(prefix='course_lib_tests_')
QUIET = dict(  # one thread a process: two of them share the cores; nothing of the user's is read, nothing is reported home
    OMP_NUM_THREADS='1', COURSE_SIZE='quick', COURSE_DATA=f'{TMP.name}/data', IPYTHONDIR=f'{TMP.name}/ipython',
    JUPYTER_CONFIG_DIR=f'{TMP.name}/jupyter', JUPYTER_DATA_DIR=f'{TMP.name}/jupyter', JUPYTER_RUNTIME_DIR=f'{TMP.name}/jupyter',
    WANDB_MODE='offline', RAY_USAGE_STATS_ENABLED='0', NO_ALBUMENTATIONS_UPDATE='1', DO_NOT_TRACK='1')


def pytest_addoption(parser):
    parser.addoption('--flags', default='', help='run what is off by default, space separated: ' + ', '.join(FLAGS))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    "Before the workers start, so that they inherit it all"
    for flag, why in FLAGS.items(): config.addinivalue_line('markers', f'{flag}: {why}; runs with --flags {flag}')
    if 'PYTEST_XDIST_WORKER' in os.environ: return
    flags = config.getoption('flags').split()
    if unknown := set(flags) - set(FLAGS): raise pytest.UsageError(f'--flags knows {", ".join(FLAGS)}, not {", ".join(unknown)}')
    os.environ.update(QUIET)
    os.environ['COURSE_TEST_NETWORK'] = 'open (--flags net)' if 'net' in flags else f'closed: {close_network()}'


def pytest_report_header(config): return f"network: {os.environ['COURSE_TEST_NETWORK']}"


def pytest_collection_modifyitems(config, items):
    "Skip what no flag asks for"
    on = config.getoption('flags').split()
    for item in items:
        for flag in FLAGS.keys() - set(on):
            if item.get_closest_marker(flag): item.add_marker(pytest.mark.skip(reason=f'{FLAGS[flag]}: --flags {flag}'))


def pytest_xdist_make_scheduler(config, log):
    "A file's tests share a worker, and so their fixtures; each notebook goes where there is room"
    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid): return nodeid if '::test_notebook[' in nodeid else nodeid.split('::')[0]
    return ByFile(config, log)


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture
def flags(request): return request.config.getoption('flags').split()
