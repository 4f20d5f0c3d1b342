"Processes forked from one that has the slow imports behind it. Python keeps one such server in a process, whoever starts it, so all tests share one list"
import sys
from multiprocessing import get_context

APART = get_context('forkserver' if sys.platform == 'linux' else 'spawn')   # not on macOS: fork is not safe there
if sys.platform == 'linux': APART.set_forkserver_preload(['course_lib.tools.cli', 'course_lib.capstone', 'course_lib.training', 'course_lib.dataloading', 'course_lib.tools.folds', 'fastai.callback.schedule'])
