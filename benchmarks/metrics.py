"""Our metrics beside what a user would pick instead, on the same data, after checking that the values agree to 1e-6.

python benchmarks/metrics.py [--quick] [--rounds N]

Every table is one interleaved race: the entries take turns, round after round, in one process with one torch thread.
Printed are medians of the ratios within a round, with their smallest and largest value, and the median in processor time,
which says how much work is saved where other programs take the processor away. torchmetrics goes through rankings query by
query, so it ranks fewer of them, and SciPy's bootstrap with scikit-learn's F1 draws fewer resamples; both are timed per
query and per resample. Results go to results/metrics.json.
"""
import warnings

warnings.filterwarnings('ignore')

import numpy as np
import torch
from _racing import options, race, ratios, save, speeds
from scipy import stats
from sklearn import metrics as sk
from torchmetrics import MetricCollection
from torchmetrics import classification as tm
from torchmetrics.functional import retrieval as tm_retrieval
from torchmetrics.functional.classification import multiclass_auroc

from course_lib.metrics import (accuracy, average_precision, bootstrap_ci, classification_scores, f1_score, mean_average_precision,
                                mrr, ndcg, precision, ranking_scores, recall, roc_auc)


def agree(name, ours, theirs, eps=1e-6):
    "Stop unless two values are the same up to eps"
    ours, theirs = (np.asarray(o, dtype=float) for o in (ours, theirs))
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < eps, f'{name}: {ours} is not {theirs}'


def classification(n, rounds):
    "n × 10 scores: accuracy, and macro precision, recall and F1; then ROC AUC, each class against the rest"
    gen = torch.Generator().manual_seed(0)
    scores = torch.randn(n, 10, generator=gen).softmax(1)
    target = torch.where(torch.rand(n, generator=gen) < .3, scores.argmax(1), torch.randint(10, (n,), generator=gen))
    labels, numpy_scores, numpy_target = scores.argmax(1), scores.numpy(), target.numpy()
    both = MetricCollection([tm.MulticlassAccuracy(10, average='micro'), tm.MulticlassPrecision(10), tm.MulticlassRecall(10), tm.MulticlassF1Score(10)])
    def four_sklearn(preds): return (sk.accuracy_score(numpy_target, preds), *sk.precision_recall_fscore_support(numpy_target, preds, average='macro')[:3])
    def calls_sklearn():
        preds = numpy_scores.argmax(1)
        return [sk.accuracy_score(numpy_target, preds)] + [f(numpy_target, preds, average='macro') for f in (sk.precision_score, sk.recall_score, sk.f1_score)]
    def torchmetrics():
        both.reset()
        both.update(scores, target)
        return list(both.compute().values())
    def calls(): return [f(scores, target) for f in (accuracy, precision, recall, f1_score)]
    agree('four scores', list(classification_scores(scores, target).values()), four_sklearn(numpy_scores.argmax(1)))
    agree('four calls', calls(), calls_sklearn())
    agree('four calls', calls(), torchmetrics())
    agree('ROC AUC', roc_auc(scores, target), sk.roc_auc_score(numpy_target, numpy_scores, multi_class='ovr'))
    agree('ROC AUC', roc_auc(scores, target), multiclass_auroc(scores, target, 10))
    one_hot = np.eye(10, dtype=int)[numpy_target]
    agree('AP', average_precision(scores, target), sk.average_precision_score(one_hot, numpy_scores))
    return race({
        'four scores: ours, one count': (lambda: classification_scores(scores, target), 3),
        'four scores: ours, four calls': (calls, 1),
        'four scores: scikit-learn, two calls': (lambda: four_sklearn(numpy_scores.argmax(1)), 1),
        'four scores: scikit-learn, four calls': (calls_sklearn, 1),
        'four scores: torchmetrics, one collection': (torchmetrics, 1),
        'from class numbers: ours, one count': (lambda: classification_scores(labels, target), 5),
        'from class numbers: scikit-learn, two calls': (lambda: four_sklearn(labels.numpy()), 1),
        'ROC AUC: ours': (lambda: roc_auc(scores, target), 2),
        'ROC AUC: scikit-learn': (lambda: sk.roc_auc_score(numpy_target, numpy_scores, multi_class='ovr'), 1),
        'ROC AUC: torchmetrics': (lambda: multiclass_auroc(scores, target, 10), 1),
        'AP: ours': (lambda: average_precision(scores, target), 2),
        'AP: scikit-learn': (lambda: sk.average_precision_score(one_hot, numpy_scores), 1),
    }, rounds)


def ranking(q, q_loop, rounds):
    "q queries of 20 documents; torchmetrics does the first q_loop of them. Seconds a query"
    gen = torch.Generator().manual_seed(0)
    scores, relevance = torch.rand(q, 20, generator=gen) + .01, torch.randint(0, 2, (q, 20), generator=gen)
    loops = {mrr: tm_retrieval.retrieval_reciprocal_rank, mean_average_precision: tm_retrieval.retrieval_average_precision, ndcg: tm_retrieval.retrieval_normalized_dcg}
    entries = {}
    for ours, theirs in loops.items():
        def loop(theirs=theirs): return [theirs(s, r) for s, r in zip(scores[:q_loop], relevance)]
        agree(ours.__name__, ours(scores[:q_loop], relevance[:q_loop], reduction='none'), loop())
        entries[f'{ours.__name__}: ours'] = (lambda ours=ours: ours(scores, relevance)), 2
        entries[f'{ours.__name__}: torchmetrics'] = loop, 1
    tied = (scores*20).round()
    agree('NDCG with ties', ndcg(tied[:q_loop], relevance[:q_loop]), sk.ndcg_score(relevance[:q_loop], tied[:q_loop]))
    entries['all three: ours, one sort'] = (lambda: ranking_scores(scores, relevance)), 2
    entries['ndcg: scikit-learn'] = (lambda: sk.ndcg_score(relevance[:q_loop].numpy(), scores[:q_loop].numpy())), 1
    seconds = race(entries, rounds)
    return {name: [[o/(q if 'ours' in name else q_loop) for o in s] for s in each] for name, each in seconds.items()}


def bootstrap(n, draws, draws_loop, rounds):
    "Intervals from n rows. Seconds a resample"
    gen = torch.Generator().manual_seed(0)
    target = torch.randint(10, (n,), generator=gen)
    preds = torch.where(torch.rand(n, generator=gen) < .8, target, torch.randint(10, (n,), generator=gen))
    hits, numpy_preds, numpy_target = (preds == target).double().numpy(), preds.numpy(), target.numpy()
    def f1(p, t): return sk.f1_score(t, p, average='macro')
    def mean_scipy(draws=draws): return stats.bootstrap((hits,), np.mean, n_resamples=draws, method='percentile', rng=0)
    def f1_scipy(): return stats.bootstrap((numpy_preds, numpy_target), f1, n_resamples=draws_loop, paired=True, vectorized=False, method='percentile', rng=0)
    agree('F1', bootstrap_ci(f1_score, preds, target, 10)[0], f1(numpy_preds, numpy_target))
    agree('same draws', bootstrap_ci(f1_score, preds, target, 50), bootstrap_ci(f1, preds, target, 50))   # the fast way and the loop over resamples
    agree('accuracy interval', bootstrap_ci(accuracy, preds, target, 20_000)[1:], mean_scipy(20_000).confidence_interval, 1.5/n)   # other draws: up to one row
    seconds = race({
        'bootstrap of accuracy: ours': (lambda: bootstrap_ci(accuracy, preds, target, draws), 2),
        'bootstrap of accuracy: SciPy, vectorised': (mean_scipy, 2),
        'bootstrap of macro F1: ours': (lambda: bootstrap_ci(f1_score, preds, target, draws), 2),
        'bootstrap of macro F1: SciPy with scikit-learn': (f1_scipy, 1),
    }, rounds)
    return {name: [[o/(draws_loop if 'scikit-learn' in name else draws) for o in s] for s in each] for name, each in seconds.items()}


# (what, ours, beside, goal: ours must be at least so many times as fast; None where no goal was set)
GOALS = [
    ('four scores, over scikit-learn', 'four scores: ours, one count', 'four scores: scikit-learn, two calls', 4),
    ('four scores, over torchmetrics', 'four scores: ours, one count', 'four scores: torchmetrics, one collection', None),
    ('four scores, four calls each', 'four scores: ours, four calls', 'four scores: scikit-learn, four calls', None),
    ('four scores from class numbers, over scikit-learn', 'from class numbers: ours, one count', 'from class numbers: scikit-learn, two calls', None),
    ('ROC AUC, over scikit-learn', 'ROC AUC: ours', 'ROC AUC: scikit-learn', 6),
    ('ROC AUC, over torchmetrics', 'ROC AUC: ours', 'ROC AUC: torchmetrics', None),
    ('average precision, over scikit-learn', 'AP: ours', 'AP: scikit-learn', None),
    ('NDCG, over torchmetrics', 'ndcg: ours', 'ndcg: torchmetrics', 100),
    ('NDCG, over scikit-learn', 'ndcg: ours', 'ndcg: scikit-learn', None),
    ('MRR, over torchmetrics', 'mrr: ours', 'mrr: torchmetrics', 100),
    ('MAP, over torchmetrics', 'mean_average_precision: ours', 'mean_average_precision: torchmetrics', 100),
    ('all three rankings, over torchmetrics', 'all three: ours, one sort', 'all three: torchmetrics', None),
    ('bootstrap of accuracy, over SciPy', 'bootstrap of accuracy: ours', 'bootstrap of accuracy: SciPy, vectorised', None),
    ('bootstrap of macro F1, over SciPy', 'bootstrap of macro F1: ours', 'bootstrap of macro F1: SciPy with scikit-learn', None),
]


def main():
    rounds, quick = options(__doc__, 5, 2, 'rows')
    sizes = dict(rows=100_000, queries=10_000, queries_loop=300, bootstrap_rows=2000, resamples=300, resamples_loop=20) if quick else \
            dict(rows=1_000_000, queries=100_000, queries_loop=2000, bootstrap_rows=2000, resamples=1000, resamples_loop=100)
    torch.set_num_threads(1)
    seconds = classification(sizes['rows'], rounds)
    seconds |= ranking(sizes['queries'], sizes['queries_loop'], rounds)
    seconds |= bootstrap(sizes['bootstrap_rows'], sizes['resamples'], sizes['resamples_loop'], rounds)
    seconds['all three: torchmetrics'] = [[sum(o) for o in zip(*each)] for each in zip(*(seconds[f'{name}: torchmetrics'] for name in ('mrr', 'mean_average_precision', 'ndcg')))]
    save('metrics', quick, ('torch', 'scikit-learn', 'torchmetrics', 'scipy', 'numpy'), rounds=rounds, sizes=sizes,
         milliseconds=speeds(seconds, 'milliseconds (rankings: a query; bootstrap: a resample)'), ratios=ratios(seconds, GOALS))


if __name__ == '__main__': main()
