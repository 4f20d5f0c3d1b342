"A socket that reaches this machine only"
import errno
import ipaddress
import socket


def is_local(address):
    "Is `address` a local socket file or a loopback host?"
    if not isinstance(address, tuple): return True
    host = address[0].decode() if isinstance(address[0], bytes) else address[0]
    if host in ('', 'localhost', None): return True
    try: return ipaddress.ip_address(host.split('%')[0]).is_loopback
    except ValueError: return False


def guard(method, position):
    "`method` of a socket, refused for an address (its argument at `position`) on another machine"
    def guarded(self, *args):
        if not is_local(args[position]): raise OSError(errno.ENETUNREACH, f'the network is closed for tests: {args[position]}')
        return method(self, *args)
    return guarded


def guarded_lookup(lookup):
    "`socket.getaddrinfo` for local names only"
    def getaddrinfo(host, *args, **kwargs):
        if not is_local((host,)): raise socket.gaierror(socket.EAI_AGAIN, f'the network is closed for tests: {host}')
        return lookup(host, *args, **kwargs)
    return getaddrinfo


def install():
    "Replace the calls that leave the machine"
    if getattr(socket, 'guarded', False): return
    for name, position in ('connect', 0), ('connect_ex', 0), ('sendto', -1):
        setattr(socket.socket, name, guard(getattr(socket.socket, name), position))
    socket.getaddrinfo, socket.guarded = guarded_lookup(socket.getaddrinfo), True
