"The network is closed for the tests themselves, for a process that they start and for a Jupyter kernel"
import os
import subprocess
import sys

import pytest
from jupyter_client.manager import run_kernel

# A datagram socket sends nothing when it connects: the attempt fails only where there is no route, or a guard.
PROBE = """
import socket
def attempt(kind, host):
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(5)
        try: s.connect((host, 53))
        except TimeoutError: return 'timed out: the network may be open'
        except OSError as e: return 'closed'
        return 'open'
def look_up(name):
    try: socket.getaddrinfo(name, 443)
    except OSError: return 'closed'
    return 'open'
with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()): loopback = 'works'
print(attempt(socket.SOCK_DGRAM, '1.1.1.1'), attempt(socket.SOCK_STREAM, '1.1.1.1'), look_up('example.com'), loopback)
"""
CLOSED = 'closed closed closed works'
pytestmark = pytest.mark.skipif('open' in os.environ.get('COURSE_TEST_NETWORK', ''), reason='--flags net opens the network')


def test_parent(capsys):
    exec(PROBE, {})
    assert capsys.readouterr().out.strip() == CLOSED


def test_subprocess():
    assert subprocess.run([sys.executable, '-c', PROBE], capture_output=True, text=True, check=True).stdout.strip() == CLOSED


def test_kernel():
    said = []
    with run_kernel(kernel_name='python3') as client:
        client.execute_interactive(PROBE, timeout=60, output_hook=lambda m: said.append(m['content'].get('text', '')))
    assert ''.join(said).strip() == CLOSED


def test_guard_closes_it_too(root):
    "The fallback of machines without namespaces, tried inside the namespace: its message comes before any route is looked for"
    code = "import socket\ntry: socket.create_connection(('1.1.1.1', 53), timeout=5)\nexcept OSError as e: print(e)"
    env = os.environ | {'PYTHONPATH': str(root/'tests/guard')}
    assert 'closed for tests' in subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout
