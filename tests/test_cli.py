"The command line as a user meets it: other processes, real folders, exit codes, and never a traceback"
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from course_lib.datasets import digits, scenes
from course_lib.tools.cli import main


def shell(*args, cwd=None, **env):
    "Run `course_lib ARGS` in a process of its own"
    words = [sys.executable, '-m', 'course_lib', *map(str, args)]
    done = subprocess.run(words, cwd=cwd, env=os.environ | {'PYTHONIOENCODING': 'utf-8'} | env, capture_output=True, text=True, encoding='utf-8', timeout=300)
    assert 'Traceback' not in done.stdout + done.stderr and 'Warning' not in done.stderr, done.stderr
    return done


def here(*args):
    "The same in this process, which has the imports behind it; returns the exit code"
    with pytest.raises(SystemExit) as end: main(list(map(str, args)))
    return end.value.code or 0


@pytest.mark.parametrize('command', ['', 'start', 'lab', 'check', 'progress', 'train', 'predict', 'doctor'])
def test_help(command):
    done = shell(*command.split(), '--help')
    assert done.returncode == 0 and done.stdout.startswith('Usage: ') and '--help' in done.stdout


@pytest.mark.parametrize('args, word', [
    (['no-such-command'], 'no-such-command'), (['train', '--folds', '1'], '--folds'), (['train', '--folds', 'many'], '--folds'),
    (['train', '--resize', 'stretch'], 'letterbox'), (['predict'], 'RUN'), (['predict', 'run'], 'IMG'), (['check'], 'FILE'), (['doctor', '--color'], '--color')])
def test_wrong_usage(args, word, capsys):
    assert here(*args) == 2 and word in capsys.readouterr().err


def test_installed_script_and_version():
    script = Path(sys.executable).with_name('course_lib' + ('.exe' if os.name == 'nt' else ''))
    done = subprocess.run([script, '--version'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[0] == 'course_lib'


def test_doctor():
    done = shell('doctor')
    assert done.returncode == 0 and all(w in done.stdout for w in ('Python', 'torch', 'GPU', 'disk', 'Jupyter', 'extra vision'))


def test_doctor_says_what_to_type(tmp_path, monkeypatch, capsys):
    (tmp_path/'taken').write_text('a file where the folder should be')
    monkeypatch.setenv('COURSE_DATA', str(tmp_path/'taken'))
    monkeypatch.setenv('COURSE_SIZE', 'medium')
    assert here('doctor') == 1
    told = capsys.readouterr().out
    assert 'export COURSE_DATA=' in told and 'unset COURSE_SIZE' in told


def test_debug_shows_the_traceback(tmp_path):
    (tmp_path/'taken').write_text('a file where the folder should be')
    words, quiet = [sys.executable, '-m', 'course_lib'], shell('start', tmp_path/'taken')
    assert quiet.returncode == 1 and 'taken' in quiet.stderr
    for args, env in ((['--debug', 'start'], {}), (['start'], {'COURSE_DEBUG': '1'})):
        done = subprocess.run([*words, *args, tmp_path/'taken'], env=os.environ | env, capture_output=True, text=True)
        assert done.returncode == 1 and 'Traceback' in done.stderr


def test_start_twice_keeps_what_you_wrote(tmp_path):
    assert shell('start', 'learn', cwd=tmp_path).returncode == 0
    lesson = next((tmp_path/'learn').glob('00_*.ipynb'))
    lesson.write_text(lesson.read_text(encoding='utf-8').replace('# ', '# Mine: ', 1), encoding='utf-8')
    assert shell('start', 'learn', cwd=tmp_path).returncode == 0
    assert 'Mine: ' in lesson.read_text(encoding='utf-8')


RUN_FILES = {'config.json', 'metrics.json', *(f'model-{n}.safetensors' for n in range(4)), 'oof.csv', 'oof_shuffled.csv', 'learning_curves.csv',
             'learning_curves.png', 'confusion_matrix.csv', 'confusion_matrix.png', 'costly_images.csv', 'costly_images.png', 'reliability.png', 'slices.csv',
             'eda.csv', 'submission.csv', 'model_card.md'}


def test_digits_from_a_folder(tmp_path, capsys):
    "Train on some digits, label others, scanned ones too; the same seed gives the same run in another process"
    data = digits()
    data.subset(slice(0, 600)).to_folder(tmp_path/'data')
    new = tmp_path/'new'
    new.mkdir()
    for i in range(1000, 1040):
        image = Image.fromarray(data.images[i, 0].numpy())
        if i % 2: image = ImageOps.invert(image.resize((56, 56)))   # as a scanner sees it
        image.save(new/f'{i}.png')
    args = ['train', '--data', tmp_path/'data', '--folds', 2, '--members', 2, '--epochs', 4, '--bs', 32, '--groups', 'writer', '--device', 'cpu', '--test', new]
    done = shell(*args, '--out', 'run', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count('95% interval') == 2 and done.stdout.count('calibrated: accuracy') == 2 and 'check: ' in done.stdout, done.stderr
    assert {p.name for p in (tmp_path/'run').iterdir()} == RUN_FILES

    assert here(*args, '--out', tmp_path/'run') == 1 and 'already holds a finished run' in capsys.readouterr().err
    assert here(*args, '--out', tmp_path/'other') == 0
    for name in 'metrics.json', 'oof.csv', 'model-3.safetensors', 'submission.csv':
        assert (tmp_path/'run'/name).read_bytes() == (tmp_path/'other'/name).read_bytes()

    done = shell('predict', 'run', 'new', '--format', 'csv', cwd=tmp_path)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    right = [row['label'] == str(int(data.labels[int(Path(row['file']).stem)])) for row in rows]
    assert done.returncode == 0 and len(rows) == 40 and '20 of 40 images were inverted' in done.stderr
    assert np.mean(right) > .6 and np.mean(right[1::2]) > .5    # ten classes; the run is short
    check_run(tmp_path/'run', 600)
    submitted = list(csv.DictReader((tmp_path/'run/submission.csv').read_text().splitlines()))
    assert [(r['id'], r['label']) for r in submitted] == [(Path(row['file']).name, row['label']) for row in rows]

    (tmp_path/'form.csv').write_text('id,' + ','.join(f'p_{c}' for c in range(10)) + '\n' + ''.join(f'{i}{",0"*10}\n' for i in reversed(range(1000, 1040))))
    assert here('predict', tmp_path/'run', new, '--submission', tmp_path/'sub.csv', '--template', tmp_path/'form.csv') == 0
    sub = list(csv.DictReader((tmp_path/'sub.csv').read_text().splitlines()))
    assert [r['id'] for r in sub] == [str(i) for i in reversed(range(1000, 1040))] and abs(sum(float(sub[0][f'p_{c}']) for c in range(10)) - 1) < 1e-5
    (tmp_path/'form.csv').write_text('id,label\n7,\n')
    capsys.readouterr()
    assert here('predict', tmp_path/'run', new, '--submission', tmp_path/'none.csv', '--template', tmp_path/'form.csv') == 1
    assert "have no image, such as '7'" in capsys.readouterr().err and not (tmp_path/'none.csv').exists()


def check_run(run, n):
    "What the files say agrees"
    rows = list(csv.DictReader((run/'oof.csv').read_text(encoding='utf-8').splitlines()))
    metrics = json.loads((run/'metrics.json').read_text())
    score = metrics['protocols'][metrics['headline']]
    assert len(rows) == n and np.isclose(np.mean([r['label'] == r['predicted'] for r in rows]), score['accuracy'])
    assert score['low'] <= score['accuracy'] <= score['high']
    assert f"{score['accuracy']:.4f}" in (run/'model_card.md').read_text(encoding='utf-8')


def test_photos_of_different_sizes(tmp_path, capsys):
    "RGB, two classes, every photo of another size and shape; nothing is known about groups, and the command says so"
    data = scenes(80, 64)
    for i, (image, label) in enumerate(zip(data.images, data.labels.tolist())):
        folder = tmp_path/'photos'/('even' if label % 2 == 0 else '홀수')
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64 + i, 100 - i//2)).save(folder/f'{i}.jpg')
    assert here('train', '--data', tmp_path/'photos', '--folds', 2, '--members', 1, '--no-tta', '--epochs', 1, '--out', tmp_path/'run') == 0
    assert 'Only shuffled folds' in capsys.readouterr().out
    config = json.loads((tmp_path/'run/config.json').read_text(encoding='utf-8'))
    assert (config['channels'], config['size'], config['classes']) == (3, 64, ['even', '홀수'])
    check_run(tmp_path/'run', 80)

    one = next((tmp_path/'photos').rglob('*.jpg'))
    done = shell('predict', tmp_path/'run', one, tmp_path/'missing.jpg', '--format', 'json')
    good, bad = json.loads(done.stdout)
    assert done.returncode == 1 and good['label'] in config['classes'] and bad['error'] == 'no such file' and 'missing.jpg' in done.stderr


def test_a_model_of_timm(tmp_path, capsys):
    digits(32).subset(slice(0, 60)).to_folder(tmp_path/'data')
    assert here('train', '--data', tmp_path/'data', '--arch', 'mobilenetv3_small_050', '--folds', 2, '--members', 1, '--epochs', 1, '--out', tmp_path/'run') == 0
    assert here('predict', tmp_path/'run', tmp_path/'data/3') == 0
    assert 'prob.' in capsys.readouterr().out
