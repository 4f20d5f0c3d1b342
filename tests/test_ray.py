"Folds on a Ray cluster of two workers: one is killed with SIGKILL in mid-fold, its fold is run again, and the result is that of a plain loop"
import json
import subprocess
import sys

import pytest

pytest.importorskip('ray', reason="ray is not installed: pip install 'course_lib[scale]'")

SECONDS = 500        # about 25 s on two free cores; after this all its processes are ended

WORK = '''
import json, os, signal, sys, time
from pathlib import Path

notes = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

import numpy as np
from course_lib.datasets import digits
from course_lib.scaling import map_on_ray, ray_cluster, ray_folds
from course_lib.validation import oof_predict

data = digits()
X, y, writer = data.images.flatten(1).numpy()/255., data.labels.numpy(), data.meta.writer.to_numpy()

def fit_predict(X_tr, y_tr, X_va, y_va, X_test=None):
    from sklearn.linear_model import RidgeClassifier
    (notes/f'begun-{len(X_va)}-{os.getpid()}').touch()
    if len(X_va) == chosen:
        for _ in range(600):                                   # in the middle of the fold: wait to be killed
            if (notes/'killed').exists() or os.getpid() == parent: break
            time.sleep(.1)
        else: raise TimeoutError('nobody killed this worker')
    model = RidgeClassifier().fit(X_tr, y_tr)
    (notes/f'done-{len(X_va)}-{os.getpid()}').touch()
    return model.decision_function(X_va), None, None

def kill(size):
    "Kill the worker that runs the chosen fold, from outside"
    for _ in range(3000):
        if begun := list(notes.glob(f'begun-{size}-*')):
            pid = int(begun[0].name.split('-')[2])
            os.kill(pid, signal.SIGKILL)
            (notes/'killed').write_text(str(pid))
            return
        time.sleep(.1)

parent, chosen = os.getpid(), -1
serial = oof_predict(fit_predict, X, y, 5, groups=writer)
for note in notes.glob('*-*'): note.unlink()
lengths = [int((serial.fold == k).sum()) for k in range(5)]
chosen = next(n for n in lengths if lengths.count(n) == 1)

import threading
with ray_cluster(workers=2, seconds=300):
    threading.Thread(target=kill, args=(chosen,), daemon=True).start()
    on_ray = ray_folds(fit_predict, X, y, 5, groups=writer)
    import ray
    usage = ray._private.usage.usage_lib.usage_stats_enabled() if hasattr(ray._private, 'usage') else ray._common.usage.usage_lib.usage_stats_enabled()
    nodes = [n['NodeManagerAddress'] for n in ray.nodes()]
    try: map_on_ray(lambda i: 1//i, [1, 0])
    except ZeroDivisionError: error = 'came back'
begun = sorted(p.name for p in notes.glob('begun-*'))
report = dict(same=bool(np.array_equal(serial.oof, on_ray.oof) and np.array_equal(serial.scores, on_ray.scores)), killed=int((notes/'killed').read_text()),
              chosen=chosen, begun=begun, done=sorted(p.name for p in notes.glob('done-*')), usage=usage, nodes=nodes, error=error, parent=parent)
(notes/'report.json').write_text(json.dumps(report))
'''


def end(job):
    "The script, and what Ray started for it"
    import psutil
    if job.poll() is not None: return
    family = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.wait()
    for p in family:
        try: p.kill()
        except psutil.NoSuchProcess: pass


def test_killed_worker(tmp_path, capsys):
    script = tmp_path/'work.py'
    script.write_text(WORK)
    with open(tmp_path/'said', 'w+') as said:
        job = subprocess.Popen([sys.executable, script, str(tmp_path)], stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try: code = job.wait(SECONDS)
        finally: end(job)
    assert code == 0, (tmp_path/'said').read_text()[-3000:]
    r = json.loads((tmp_path/'report.json').read_text())
    tries = [name for name in r['begun'] if name.split('-')[1] == str(r['chosen'])]
    done = [name.split('-')[1] for name in r['done']]
    assert r['same'], 'the same predictions and scores as from a plain loop, bit for bit'
    assert f"begun-{r['chosen']}-{r['killed']}" in tries and len(tries) == 2, 'the fold of the killed worker was begun twice'
    assert len(set(done)) == len(done) == 5, 'each fold was finished once'
    assert not any(name.endswith(f"-{r['killed']}") and name.split('-')[1] == str(r['chosen']) for name in r['done']), 'the killed one did not finish it'
    assert not any(name.endswith(f"-{r['parent']}") for name in r['done']), 'all folds ran on workers'
    assert r['usage'] is False and set(r['nodes']) == {'127.0.0.1'} and r['error'] == 'came back'
    with capsys.disabled(): print(f"\nRay: worker {r['killed']} was killed in mid-fold; its fold was run again")


def test_another_ray():
    "Where a name of Ray's own is missing, one warning says which, and the cluster is started all the same"
    from types import SimpleNamespace
    from course_lib.scaling import _patient
    other = SimpleNamespace(__version__='9.9', _private=SimpleNamespace(services=SimpleNamespace(get_node=len)))
    began = []
    with pytest.warns(UserWarning, match='Ray 9.9 has no .*services.resolve_ip_for_localhost.*RayParams') as told, _patient(other, 1.):
        began.append(other._private.services.get_node([1, 2]))       # the name that is there is used
        assert other._private.services.get_node is not len
    assert began == [2] and len(told) == 1 and 'get_node' not in str(told[0].message)
    assert other._private.services.get_node is len, 'put back afterwards'
