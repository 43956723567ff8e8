"""The models of the tests are tiny: a second thread would only wait, here and in the processes that tests start."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
