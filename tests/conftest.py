"""Settings of all tests."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # tiny models spend their time handing work between threads
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub
os.environ["WANDB_MODE"] = "offline"
