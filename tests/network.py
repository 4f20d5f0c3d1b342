"Closes the network for this process and all its children, so that a green run proves that the course works offline"
import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

GUARD = Path(__file__).parent/'guard'   # its sitecustomize.py is loaded by every Python that has the folder on its path


def unshare(flags):
    "Leave the namespaces in `flags` for new ones (Python 3.12 has os.unshare)"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags): raise OSError(ctypes.get_errno(), 'unshare')


def loopback_up():
    "What `ip link set lo up` does, without iproute2: Jupyter kernels talk over loopback"
    import fcntl
    set_flags, up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: fcntl.ioctl(s, set_flags, struct.pack('16sh22x', b'lo', up))


def enter_namespace():
    "Enter a network namespace with only loopback, as root directly, else inside a user namespace of one's own"
    new_user, new_net = 0x10000000, 0x40000000
    uid, gid = os.getuid(), os.getgid()
    try: unshare(new_net)
    except OSError:
        unshare(new_user | new_net)
        for name, text in ('setgroups', 'deny'), ('uid_map', f'{uid} {uid} 1'), ('gid_map', f'{gid} {gid} 1'):
            Path('/proc/self', name).write_text(text)
    loopback_up()


def works(step):
    "Does `step` succeed? Tried in a forked child, because there is no way back from a half-entered namespace"
    pid = os.fork()
    if pid: return os.waitpid(pid, 0)[1] == 0
    try: step()
    except OSError: os._exit(1)
    os._exit(0)


def close_network():
    "Close the network and say how: a namespace where the machine allows it, else a guard in every Python process"
    if sys.platform == 'linux' and works(enter_namespace):
        enter_namespace()
        return 'network namespace with only loopback'
    sys.path.insert(0, str(GUARD))
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get('PYTHONPATH')]))
    import guarded_socket
    guarded_socket.install()
    return 'socket guard (Python processes only)'
