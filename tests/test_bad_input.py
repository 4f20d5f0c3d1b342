"Bad files, one by one: `from_folder`, `train` and `predict` handle each or name it; nothing is dropped, no traceback is shown"
import contextlib
import json
import os
import shutil
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from course_lib.datasets import BadImage, BadImageFolder, LabeledImages, read_image
from course_lib.modules import save_weights
from course_lib.tools.cli import main
from course_lib.tools.models import small_cnn
from course_lib.tools.runs import load_run, predict_files

GREY = Image.fromarray((np.arange(64).reshape(8, 8)*4).astype(np.uint8))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8))


# What may be found in a folder. Each function writes one file at `path`.
def truncated(path):
    whole = path.with_name('whole.jpg')
    PHOTO.resize((64, 64)).save(whole)
    path.write_bytes(whole.read_bytes()[:400])
    whole.unlink()


def bomb(path):
    "A PNG of a few bytes that says it is 60,000 pixels wide and high"
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 0, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0'*100)) + chunk(b'IEND', b''))


def turned(path):
    "Lies on its side; EXIF says so"
    exif = Image.Exif()
    exif[0x112] = 6
    PHOTO.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def animated(path): GREY.save(path, save_all=True, append_images=[GREY.point(lambda v: 255 - v)])
def sixteen_bit(path): Image.fromarray(np.asarray(GREY).astype(np.uint16)*257).save(path)
def cmyk(path): PHOTO.resize((24, 24)).convert('CMYK').save(path, quality=95)
def grey(path): GREY.save(path, format='PNG')


LONG = 'n'*(255 - 4 if os.name == 'posix' else 80) + '.png'
NAMED = {   # file name -> how to make it, a word of the reason that the user reads
    'notes.png': (lambda p: p.write_text('no image at all'), 'not an image'),
    'cut.jpg': (truncated, 'cut off'),
    'zero.png': (lambda p: p.touch(), '0 bytes'),
    'moving.gif': (animated, '2 frames'),
    'bomb.png': (bomb, 'bomb')}
HANDLED = {   # file name -> how to make it
    'a PNG named.jpg': grey, 'cmyk.jpg': cmyk, 'sixteen.png': sixteen_bit, 'turned.png': turned, '손글씨 숫자.png': grey, LONG: grey}


@pytest.fixture
def folder(tmp_path):
    "Two classes of good images"
    for name in 'ab':
        (tmp_path/'data'/name).mkdir(parents=True)
        for i in range(3): GREY.save(tmp_path/'data'/name/f'{i}.png')
    return tmp_path/'data'


@pytest.fixture
def run(tmp_path):
    "A run folder with untrained weights"
    out = tmp_path/'run'
    out.mkdir()
    torch.manual_seed(0)
    save_weights(small_cnn(2), out/'model-0.safetensors')
    fold = dict(weights='model-0.safetensors', mean=[.5], std=[.3])
    config = dict(format=1, arch='smallcnn', classes=['a', 'b'], channels=1, size=8, resize='letterbox', border=[100., 80.], folds=[fold])
    (out/'config.json').write_text(json.dumps(config))
    return out


@pytest.fixture
def shell(capsys):
    "Run a command line as the shell would; gives exit code, output and error text, and fails for a traceback"
    def run(*args):
        with pytest.raises(SystemExit) as end: main(list(map(str, args)))
        out, err = capsys.readouterr()
        assert 'Traceback' not in out + err
        return end.value.code or 0, out, err
    return run


# --- from_folder ---
@pytest.mark.parametrize('name', NAMED)
def test_from_folder_names_it(folder, name):
    make, reason = NAMED[name]
    make(folder/'a'/name)
    with pytest.raises(BadImageFolder) as e: LabeledImages.from_folder(folder, size=8)
    assert list(e.value.problems) == [folder/'a'/name] and name in str(e.value) and reason in str(e.value)
    with pytest.warns(UserWarning, match=reason.replace('(', r'\(')): data = LabeledImages.from_folder(folder, size=8, on_error='skip')
    assert len(data) == 6 and [Path(p).name for p in data.meta.attrs['skipped']] == [name]


@pytest.mark.parametrize('name', HANDLED, ids=lambda n: n[:20])
def test_from_folder_handles_it(folder, name):
    HANDLED[name](folder/'a'/name)
    data = LabeledImages.from_folder(folder, size=8)
    assert len(data) == 7 and name in [Path(p).name for p in data.meta.path] and not data.meta.attrs['skipped']


def test_from_folder_names_all_at_once(folder):
    for name, (make, _) in NAMED.items(): make(folder/'b'/name)
    with pytest.raises(BadImageFolder) as e: LabeledImages.from_folder(folder, size=8)
    assert {p.name for p in e.value.problems} == set(NAMED)


def test_from_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match='no_such'): LabeledImages.from_folder(tmp_path/'no_such')
    with pytest.raises(ValueError, match='no usable image'): LabeledImages.from_folder(tmp_path)
    (tmp_path/'cats').mkdir()
    with pytest.raises(ValueError, match='cats'): LabeledImages.from_folder(tmp_path)
    GREY.save(tmp_path/'loose.png')
    with pytest.raises(NotADirectoryError, match='loose.png'): LabeledImages.from_folder(tmp_path/'loose.png')
    with pytest.raises(BadImageFolder, match='loose.png'): LabeledImages.from_folder(tmp_path)


# --- what is handled is handled rightly ---
def test_exif_turn_is_undone(tmp_path):
    turned(tmp_path/'turned.png')
    image, facts = read_image(tmp_path/'turned.png')
    assert facts['exif_turn'] and np.array_equal(image, PHOTO)


def test_16_bit_keeps_its_brightness(tmp_path):
    sixteen_bit(tmp_path/'sixteen.png')
    assert np.array_equal(read_image(tmp_path/'sixteen.png')[0], GREY)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new('RGB', (16, 16), (200, 40, 90)).convert('CMYK').save(tmp_path/'cmyk.jpg', quality=95)
    image, _ = read_image(tmp_path/'cmyk.jpg')
    assert image.mode == 'RGB' and np.abs(np.asarray(image, int) - (200, 40, 90)).max() < 12


def test_content_decides_not_the_extension(tmp_path):
    grey(tmp_path/'a PNG named.jpg')
    image, facts = read_image(tmp_path/'a PNG named.jpg')
    assert facts['format'] == 'PNG' and np.array_equal(image, GREY)


# --- train ---
def test_train_names_all(folder, shell, tmp_path):
    for name, (make, _) in NAMED.items(): make(folder/'b'/name)
    code, _, err = shell('train', '--data', folder, '--out', tmp_path/'out')
    assert code == 1 and '--on-error skip' in err and not (tmp_path/'out').exists()
    for name, (_, reason) in NAMED.items(): assert any(name in line and reason in line for line in err.splitlines())


def test_train_can_go_on_without_them(folder, shell, tmp_path):
    for name, (make, _) in NAMED.items(): make(folder/'b'/name)
    code, _, err = shell('train', '--data', folder, '--out', tmp_path/'out', '--folds', 2, '--members', 1, '--epochs', 1, '--on-error', 'skip')
    assert code == 0 and all(name in err for name in NAMED)
    assert {Path(p).name for p in json.loads((tmp_path/'out/config.json').read_text())['skipped']} == set(NAMED)


@pytest.mark.parametrize('args, words', [
    ([], ["'a' has 3", 'too few images for 5 folds', '--folds 3']),
    (['--folds', '2', '--arch', 'smalcnn'], ['unknown arch', 'smallcnn']),
    (['--folds', '2', '--groups', 'writer'], ['_meta.csv', 'writer'])], ids=['few images', 'unknown arch', 'no such column'])
def test_train_refuses_before_training(folder, shell, tmp_path, args, words):
    code, out, err = shell('train', '--data', folder, '--out', tmp_path/'out', *args)
    assert code == 1 and all(w in err for w in words) and 'fold 1' not in out and not (tmp_path/'out').exists()


def test_train_names_bad_test_images(folder, shell, tmp_path):
    (tmp_path/'test').mkdir()
    code, _, err = shell('train', '--data', folder, '--folds', 2, '--out', tmp_path/'out', '--test', tmp_path/'test')
    assert code == 1 and 'no test image' in err
    for name, (make, _) in NAMED.items(): make(tmp_path/'test'/name)
    GREY.save(tmp_path/'test/good.png')
    code, _, err = shell('train', '--data', folder, '--folds', 2, '--out', tmp_path/'out', '--test', tmp_path/'test')
    assert code == 1 and all(name in err and reason in err for name, (_, reason) in NAMED.items()) and not (tmp_path/'out').exists()


def test_train_tells_of_copies(folder, shell, tmp_path):
    "All six images are the same picture, with two labels: said before the first network"
    code, out, _ = shell('train', '--data', folder, '--folds', 2, '--members', 1, '--epochs', 1, '--out', tmp_path/'out', '--test', folder/'a')
    assert code == 0 and out.index('9 pairs of copies with two labels') < out.index('fold 1 of 2') and '3 test images that are training images' in out
    assert 'a/0.png = b/0.png' in (tmp_path/'out/eda.csv').read_text().replace(os.sep, '/')


def test_train_on_one_class(folder, shell):
    shutil.rmtree(folder/'b')
    code, _, err = shell('train', '--data', folder, '--folds', 2)
    assert code == 1 and 'one class' in err


def test_train_on_groups_with_gaps(folder, shell):
    (folder/'_meta.csv').write_text('image,writer\n0,kim\n1,\n2,lee\n')
    code, _, err = shell('train', '--data', folder, '--folds', 2, '--groups', 'writer')
    assert code == 1 and '2 of 6 images have no writer' in err


def test_train_leaves_other_files_alone(folder, shell, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/notes.txt').write_text('keep me')
    code, _, err = shell('train', '--data', folder, '--folds', 2, '--out', tmp_path/'mine')
    assert code == 1 and '--out' in err and [p.name for p in (tmp_path/'mine').iterdir()] == ['notes.txt']


@pytest.mark.parametrize('path', ['no_such', 'empty'])
def test_train_without_images(tmp_path, shell, path):
    (tmp_path/'empty').mkdir()
    code, _, err = shell('train', '--data', tmp_path/path)
    assert code == 1 and path in err


# --- predict ---
@pytest.mark.parametrize('name', NAMED)
def test_predict_names_it(run, shell, tmp_path, name):
    make, reason = NAMED[name]
    make(tmp_path/name)
    GREY.save(tmp_path/'good.png')
    code, out, err = shell('predict', run, tmp_path/name, tmp_path/'good.png', '--format', 'json')
    bad, good = json.loads(out)
    assert code == 1 and reason in bad['error'] and name in err and reason in err
    assert good['label'] in 'ab' and abs(sum(good['probabilities'].values()) - 1) < 1e-4


def test_predict_handles_the_others(run, shell, tmp_path):
    for name, make in HANDLED.items(): make(tmp_path/name)
    code, out, err = shell('predict', run, *(tmp_path/n for n in HANDLED), '--format', 'json')
    assert code == 0 and not err and [Path(r['file']).name for r in json.loads(out)] == list(HANDLED)
    rows = {Path(r['file']).name: r for r in json.loads(out)}
    assert rows['a PNG named.jpg']['probabilities'] == rows['sixteen.png']['probabilities'] == rows['손글씨 숫자.png']['probabilities']


@pytest.mark.parametrize('how', ['table', 'csv'])
def test_predict_shows_bad_files_in_every_format(run, shell, tmp_path, how):
    grey(tmp_path/'손글씨.png')
    code, out, _ = shell('predict', run, tmp_path/'missing.png', tmp_path/'손글씨.png', '--format', how)
    assert code == 1 and 'no such file' in out and '손글씨.png' in out and len(out.splitlines()) == 3


def test_predict_on_an_empty_folder(run, shell, tmp_path):
    (tmp_path/'empty').mkdir()
    code, _, err = shell('predict', run, tmp_path/'empty')
    assert code == 1 and 'empty: a folder without images' in err


def test_predict_without_a_run(shell, tmp_path):
    GREY.save(tmp_path/'good.png')
    assert 'no such run' in shell('predict', tmp_path/'no_run', tmp_path/'good.png')[2]
    code, _, err = shell('predict', tmp_path, tmp_path/'good.png')
    assert code == 1 and 'no finished run' in err


@pytest.mark.parametrize('spoil, word', [
    (lambda run: (run/'config.json').write_text('{"format": 1'), 'config.json is damaged'),
    (lambda run: (run/'model-0.safetensors').unlink(), 'model-0.safetensors is missing'),
    (lambda run: (run/'model-0.safetensors').write_bytes(b'x'*100), 'model-0.safetensors is damaged'),
    (lambda run: save_weights(small_cnn(3), run/'model-0.safetensors'), 'does not fit')], ids=['json', 'missing', 'damaged', 'other model'])
def test_predict_with_a_spoilt_run(run, shell, tmp_path, spoil, word):
    GREY.save(tmp_path/'good.png')
    spoil(run)
    code, _, err = shell('predict', run, tmp_path/'good.png')
    assert code == 1 and word in err


def as_format_2(run, **more):
    "The run folder as today's command writes it"
    old = json.loads((run/'config.json').read_text())
    (run/'config.json').write_text(json.dumps({**old, 'format': 2, 'models': old['folds'], 'views': [[0.]*5, [.1, 0., 0., 0., 0.]], 'temperature': .5} | more))


def test_old_and_new_runs(run, shell, tmp_path):
    "Format 1 is one view and no temperature; format 2 says both"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)*3).save(tmp_path/'good.png')
    ask = lambda: list(json.loads(shell('predict', run, tmp_path/'good.png', '--format', 'json')[1])[0]['probabilities'].values())
    old = ask()
    as_format_2(run, views=[[0.]*5], temperature=1.)
    assert ask() == old
    as_format_2(run, views=[[0.]*5], temperature=.5)
    assert max(ask()) > max(old)
    as_format_2(run, temperature=1.)
    assert ask() != old


@pytest.mark.parametrize('more, word', [(dict(temperature=0), 'temperature'), (dict(views=[[0.]]), 'views'), (dict(models=[]), 'IndexError'), (dict(format=3), 'another version')])
def test_predict_with_a_spoilt_new_run(run, shell, tmp_path, more, word):
    GREY.save(tmp_path/'good.png')
    as_format_2(run, **more)
    code, _, err = shell('predict', run, tmp_path/'good.png')
    assert code == 1 and word in err


@pytest.mark.parametrize('form, word', [(None, 'no answer'), ('', 'no CSV file'), ('id\na\n', 'expected ids and one more'), ('id,label\nx,\n', "such as 'x'"),
                                        ('id,label\ngood,\ngood,\n', 'comes twice'), ('id,a,cow\ngood,0,0\n', "'cow'")])
def test_submission_that_cannot_be(run, shell, tmp_path, form, word):
    GREY.save(tmp_path/'good.png')
    args = ['predict', run, tmp_path/'good.png', '--submission', tmp_path/'sub.csv']
    if form is None: args.append(tmp_path/'missing.png')
    else:
        (tmp_path/'form.csv').write_text(form)
        args += ['--template', tmp_path/'form.csv']
    code, _, err = shell(*args)
    assert code == 1 and word in err and not (tmp_path/'sub.csv').exists()


# --- no permission: root may read everything, so root becomes nobody for the moment of reading ---
@contextlib.contextmanager
def nobody():
    if os.name != 'posix': pytest.skip('permissions of this kind are for POSIX systems')
    root = os.geteuid() == 0
    if root: os.seteuid(65534)
    try: yield
    finally:
        if root: os.seteuid(0)


@pytest.fixture
def locked():
    "A folder that everybody may enter, with a good file and one that only its owner, or nobody, may read"
    with tempfile.TemporaryDirectory() as d:
        place = Path(d)/'a'
        place.mkdir()
        for name in 'good.png', 'locked.png': GREY.save(place/name)
        for p, mode in (Path(d), 0o755), (place, 0o755), (place/'good.png', 0o644), (place/'locked.png', 0o000): p.chmod(mode)
        yield place


def test_no_permission(locked, run):
    read_image(locked/'good.png')   # what is imported on first use is imported as root
    loaded = load_run(run)
    predict_files(loaded, [locked/'good.png'])
    with nobody():
        with pytest.raises(BadImage, match='no permission'): read_image(locked/'locked.png')
        with pytest.raises(BadImageFolder) as e: LabeledImages.from_folder(locked.parent)
        answers = predict_files(loaded, [locked/'locked.png', locked/'good.png'])
    assert list(e.value.problems) == [locked/'locked.png'] and 'no permission' in str(e.value)
    assert 'no permission' in answers.error[0] and answers.label[1] in 'ab'
