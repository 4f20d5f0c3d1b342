"""The perplexity table of lessons 22 to 24 in one run: n-grams, RNN, LSTM, GRU and GPT at equal parameters and one budget.

python benchmarks/language.py [--quick]

Every network has about 58,000 parameters and reads the same batches (`BUDGET` of lesson 22). The learning rate of each is the
best of five on the validation topics, with a seed of its own, and so is the smoothing of an n-gram; the seeds of the table then train anew and are scored once
on the test topics. Perplexity is per character: 1 is perfect. Seconds are of the processor, one thread. The English text
comes with Python and differs a little between its versions. Results go to results/language.json.
"""
import statistics
import time

import torch
from _racing import options, save
from course_lib.sequences import BUDGET, CharTokenizer, LanguageModel, NGram, english_splits, perplexity, train_language_model
from course_lib.transformers import GPTBody
from torch import nn

RATES, SMOOTHINGS, SEEDS = (.01, .02, .04, .08, .16), (1., 3., 6., 12.), 3
BODIES = {'RNN': (lambda: nn.RNN(32, 176, batch_first=True), 32, 176), 'LSTM': (lambda: nn.LSTM(32, 91, batch_first=True), 32, 91),
          'GRU': (lambda: nn.GRU(32, 105, batch_first=True), 32, 105), 'GPT': (lambda: GPTBody(48, 2, 2, 144, window=BUDGET['seq_len']), 48, 48)}


def train(name, vocab, ids, lr, seed, steps):
    "(trained model, seconds of processor time)"
    make, embed, hidden = BODIES[name]
    torch.manual_seed(seed)
    model, start = LanguageModel(vocab, make(), embed, hidden), time.process_time()
    train_language_model(model, ids, seed=seed, **BUDGET | dict(lr=lr, steps=steps))
    return model, time.process_time() - start


def main():
    _, quick = options(__doc__, SEEDS, SEEDS, 'steps')
    steps = 20 if quick else BUDGET['steps']
    torch.set_num_threads(1)
    texts = english_splits()
    tok = CharTokenizer(''.join(texts))
    fit, valid, test = (tok.encode(text) for text in texts)
    rows = []
    for order in range(1, 7):
        start, model = time.process_time(), NGram(order, len(tok)).fit(fit)
        def with_smoothing(m, ids): model.smoothing = m; return perplexity(model, ids)
        best = min(SMOOTHINGS, key=lambda m: with_smoothing(m, valid))
        rows.append(dict(model=f'{order}-gram', perplexity=with_smoothing(best, test), sd=None, rate=None, parameters=model.n_counts, read=len(fit), seconds=time.process_time() - start))
    for name in BODIES:
        rate = min(RATES, key=lambda lr: perplexity(train(name, len(tok), fit, lr, 100, steps)[0], valid))
        runs = [train(name, len(tok), fit, rate, seed, steps) for seed in range(SEEDS)]
        scores = [perplexity(model, test) for model, _ in runs]
        rows.append(dict(model=name, perplexity=statistics.mean(scores), sd=statistics.stdev(scores), rate=rate, parameters=sum(p.numel() for p in runs[0][0].parameters()),
                         read=steps*BUDGET['bs']*BUDGET['seq_len'], seconds=statistics.mean(s for _, s in runs)))
        print(rows[-1], flush=True)
    print(f'\n{"model":8} {"perplexity":>10} {"sd":>6} {"rate":>6} {"parameters":>10} {"characters read":>15} {"seconds":>8}')
    for r in rows: print(f'{r["model"]:8} {r["perplexity"]:10.2f} {"" if r["sd"] is None else format(r["sd"], ".2f"):>6} {r["rate"] or "":>6} {r["parameters"]:10,} {r["read"]:15,} {r["seconds"]:8.1f}')
    save('language', quick, ('torch',), budget=BUDGET, rates=RATES, smoothings=SMOOTHINGS, seeds=SEEDS, characters=dict(zip(('train', 'valid', 'test'), map(len, texts))), rows=rows)


if __name__ == '__main__': main()
