"""Two ranks that hold an engine together: what stops one before it asks stops both, and none waits for the other."""

import faulthandler
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.algorithm.variants import original
from diva_engine.distributed import gather_from_all
from diva_engine.records import Problem, Request, UserError
from diva_engine.rollout.native_engine import NativeEngine
from diva_engine.settings import load_config
from diva_engine.train import build_collector, build_encoder
from diva_engine.trainer.faults import FaultLog
from diva_engine.trainer.policies import load_whole_policy
from diva_engine.trainer.stopwatch import Stopwatch
from python_tests.models import build_tiny_model
from python_tests.questions import encoded_image
from python_tests.ranks import on_ranks

PATIENCE_S = 120


class EngineOfTwo(NativeEngine):
    """Answers when both ranks have asked, in a group of their own, as a tensor-parallel engine does."""

    def generate(self, jobs, sampling, on_answered=None):
        dist.all_reduce(torch.ones(1), group=self.ranks)
        return super().generate(jobs, sampling, on_answered)


def ask_with_one_bad_picture(folder):
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)  # a rank that waits is one that fails
    config = load_config([f"model={folder}", "data.on_bad_row=stop", "data.max_response_length=4"], recipe_defaults)
    policy = load_whole_policy(config)
    collector = build_collector(config, policy, build_encoder(config, policy.processor), FaultLog())
    engine = EngineOfTwo(policy.model, policy.processor)
    engine.ranks = dist.new_group()
    collector = replace(collector, engine=engine)
    good, bad = encoded_image(1), b"no picture"
    for pictures in ([good, bad], [bad, good], [bad, bad]):
        with pytest.raises(UserError) as stopped:
            collector.ask([request(i, picture) for i, picture in enumerate(pictures)], 0, Stopwatch())
        said = gather_from_all(str(stopped.value))
        assert said[0] == said[1]
        assert f"train.parquet:{pictures.index(bad)}" in said[0]
    assert engine.generate([], collector.sampling) == [], "the ranks still meet"
    collector.close()
    faulthandler.cancel_dump_traceback_later()


def request(number, picture):
    name = f"q{number}"
    problem = Problem(id=name, text="<image>?", answer="1", images=(picture,), origin=f"train.parquet:{number}")
    return Request(original(problem, 5.0), 2)


def test_a_picture_that_stops_one_rank_stops_both(tmp_path):
    on_ranks(2, ask_with_one_bad_picture, build_tiny_model("qwen2_5_vl", tmp_path, hidden_size=32))
