"""What every trainer of the torture loads, loaded once in the server that forks them."""

import diva_engine.train  # isort: skip  # noqa: F401 - before transformers: it lets torchvision be imported beside a CPU torch

import tqdm
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
import transformers.models.qwen2_vl.image_processing_qwen2_vl  # noqa: F401

tqdm.tqdm.get_lock()  # a semaphore, which each killed trainer would leave behind
