"""Set before the tests import the frameworks."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # else PyTorch's idle threads spin, and TensorFlow waits for a core
