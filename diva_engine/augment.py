"""Makes paraphrases and worked steps for a file of questions, with any OpenAI-compatible server.

    vllm serve Qwen/Qwen2.5-VL-72B-Instruct &
    python -m diva_engine.augment --input train.parquet --output train_augmented.parquet \
        --base-url http://localhost:8000/v1 --model Qwen/Qwen2.5-VL-72B-Instruct

The key, where the server wants one, is read from the environment (OPENAI_API_KEY, or --api-key-env). Every text is
checked before it is taken; what was rejected, and why, lies beside the output. A run that was stopped or killed goes
on with the same command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diva_engine.augmentation.asking import Asker, Job, Posed, Wishes, digest_of, done_outcomes
from diva_engine.augmentation.client import ChatClient, Patience, required_aiohttp
from diva_engine.augmentation.display import display_over
from diva_engine.augmentation.endpoint import Endpoint, open_endpoint
from diva_engine.augmentation.journal import Journal, Outcome
from diva_engine.augmentation.output import check_output, write_output, write_rejects
from diva_engine.augmentation.prompts import Kind
from diva_engine.augmentation.tally import Tally
from diva_engine.data.dataset import ProblemSet, open_problems
from diva_engine.data.images import data_uri
from diva_engine.data.llava_cot import is_llava_cot
from diva_engine.data.rows import last_boxed
from diva_engine.records import UserError
from diva_engine.rewards.answers import compare

INCOMPLETE = 1  # exit code where some questions failed: the same command asks them again


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return augment(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diva_engine.augment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, help="parquet, jsonl or json file of questions")
    add("--output", type=Path, required=True, help="file to write, of the same suffix")
    add("--base-url", required=True, help="the server, as OpenAI's clients are given it: http://localhost:8000/v1")
    add("--model", required=True, help="the model's name at the server")
    add("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="environment variable that holds the key")
    add("--paraphrases", type=int, default=3, metavar="N", help="wordings a question; 0 for none (default: 3)")
    add("--steps", action=argparse.BooleanOptionalAction, default=True, help="worked steps, for hints (default: yes)")
    add("--limit", type=int, default=0, metavar="N", help="ask for N things only, to see what comes; 0: all")
    add("--concurrency", type=int, default=16, help="requests in flight (default: 16)")
    add("--tries", type=int, default=2, help="requests a question where replies are rejected (default: 2)")
    add("--retries", type=int, default=6, help="further attempts of a request that fails (default: 6)")
    add("--backoff", type=float, default=1.0, metavar="S", help="first wait before a retry, doubled each time")
    add("--timeout", type=float, default=120.0, metavar="S", help="seconds for one attempt (default: 120)")
    add("--max-tokens", type=int, default=2048, help="tokens of a reply (default: 2048)")
    add("--temperature", type=float, default=0.7, help="of the sampling (default: 0.7)")
    add("--request", default="{}", metavar="JSON", help="further fields of every request; null takes one out")
    add("--price-in", type=float, default=0.0, help="price of a million prompt tokens")
    add("--price-out", type=float, default=0.0, help="price of a million completion tokens")
    add("--max-pixels", type=int, default=1_000_000, help="larger images are shrunk to this area; 0: never")
    add("--image-dir", help="folder that relative image paths start from (default: the input's)")
    for field, what in (("prompt", "question"), ("answer", "answer"), ("image", "images")):
        add(f"--{field}-key", metavar="COLUMN", help=f"column of the {what} (default: found by its usual names)")
    return parser.parse_args(arguments)


def augment(options: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    check_options(options)
    request_body(options)
    check_output(options.input, options.output)
    required_aiohttp()
    endpoint = open_endpoint(options.base_url, options.model, options.api_key_env)
    problems = open_input(options)
    print("\n".join(problems.describe()))
    journal = Journal(
        beside(options.output, ".journal.jsonl"),
        {"input": options.input.name, "model": options.model, "paraphrases": options.paraphrases},
    )
    try:
        tally = run(problems, journal, endpoint, options)
        return finish(problems, journal, tally, options)
    finally:
        journal.close()


def check_options(options: argparse.Namespace) -> None:
    lowest = {"paraphrases": 0, "limit": 0, "concurrency": 1, "tries": 1, "retries": 0, "backoff": 0, "timeout": 0.001}
    lowest |= {"max_tokens": 1, "temperature": 0, "price_in": 0, "price_out": 0, "max_pixels": 0}
    for name, low in lowest.items():
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= low):
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least {low}")
    if not (options.paraphrases or options.steps):
        raise UserError("--paraphrases 0 --no-steps leaves nothing to make; take one of them off")


def open_input(options: argparse.Namespace) -> ProblemSet:
    keys = {"text": options.prompt_key, "answer": options.answer_key, "images": options.image_key}
    columns: dict[str, str | None] = {field: column for field, column in keys.items() if column}
    columns["id"] = None  # rows are told by their number, so that equal ids do no harm
    return open_problems(str(options.input), columns=columns, image_dir=options.image_dir)


def jobs_of(problems: ProblemSet, options: argparse.Namespace) -> tuple[list[Job], Counter[str]]:
    """What is missing, in the order of the rows; and how many questions are left as they are, by reason."""
    sharing = Counter(problems.row_of(index) for index in range(len(problems)))
    jobs: list[Job] = []
    left: Counter[str] = Counter()
    cells = zip(*(problems.cells(field) for field in ("text", "answer", "paraphrases", "steps")), strict=True)
    for index, (text, answer, paraphrases, steps) in enumerate(cells):
        row = problems.row_of(index)
        if sharing[row] > 1:
            left["questions share their row with others of a conversation and are left as they are"] += 1
            continue
        has: dict[Kind, bool] = {"paraphrases": bool(paraphrases), "steps": bool(steps) or is_llava_cot(answer)}
        for kind in wanted_kinds(options):
            if has[kind]:
                left[f"questions have {kind} and keep them"] += 1
            else:
                jobs.append(Job(row, index, kind, digest_of(text, answer)))
    return jobs, left


def wanted_kinds(options: argparse.Namespace) -> list[Kind]:
    kinds: list[Kind] = ["paraphrases"] if options.paraphrases else []
    return [*kinds, "steps"] if options.steps else kinds


def run(problems: ProblemSet, journal: Journal, endpoint: Endpoint, options: argparse.Namespace) -> Tally:
    """Asks for what neither the input nor the journal has."""
    wanted, left = jobs_of(problems, options)
    for reason, count in left.items():
        print(f"{count} {reason}")
    jobs = remaining(wanted, journal)
    if len(jobs) < len(wanted):
        print(f"{len(wanted) - len(jobs)} of {len(wanted)} are done already, says {journal.path}")
    tally = Tally(options.price_in, options.price_out)
    for outcome in journal.outcomes:
        tally.add(outcome)
    jobs = jobs[: options.limit or None]
    with display_over(len(jobs), tally) as show:
        asyncio.run(ask(jobs, problems, journal, endpoint, options, on_retry=tally.retried, show=show))
    return tally


def remaining(wanted: Sequence[Job], journal: Journal) -> list[Job]:
    """The jobs that the journal has no outcome for. Raises UserError where it speaks of other questions."""
    done = done_outcomes(journal.outcomes)
    left = []
    for job in wanted:
        outcome = done.get((job.row, job.kind))
        if outcome is None:
            left.append(job)
        elif outcome.digest != job.digest:
            raise UserError(
                f"row {job.row} of the input is another question than in {journal.path}; "
                "give another --output, or move the journal away"
            )
    return left


async def ask(
    jobs: Sequence[Job],
    problems: ProblemSet,
    journal: Journal,
    endpoint: Endpoint,
    options: argparse.Namespace,
    *,
    on_retry: Counter[str],
    show: Callable[[Outcome], None],
) -> None:
    def pose(job: Job) -> Posed:
        problem = problems[job.index]
        return Posed(problem, tuple(data_uri(image, options.max_pixels) for image in problem.images))

    patience = Patience(options.timeout, options.retries, options.backoff)
    wishes = Wishes(options.paraphrases, options.tries, options.concurrency)
    count = lambda reason: on_retry.update([reason])  # noqa: E731
    async with ChatClient(endpoint, patience, body=request_body(options), on_retry=count) as client:
        asker = Asker(client, journal, wishes, pose=pose, same_answer=is_same_answer, on_outcome=show)
        await asker.ask_all(jobs)


def request_body(options: argparse.Namespace) -> dict[str, Any]:
    """What every request says beside the model and its messages."""
    try:
        further = json.loads(options.request)
    except ValueError:
        further = None
    if not isinstance(further, dict) or {"model", "messages", "stream", "n"} & further.keys():
        raise UserError(
            f"--request {options.request}: give a JSON object of further fields, without model, messages, stream and n"
        )
    body = {"max_tokens": options.max_tokens, "temperature": options.temperature, **further}
    return {name: value for name, value in body.items() if value is not None}


def is_same_answer(found: str, reference: str) -> bool:
    """As the training's reward compares, without computer algebra: what only algebra could tell counts as another."""
    return compare(last_boxed(found), reference) == "right"


def finish(problems: ProblemSet, journal: Journal, tally: Tally, options: argparse.Namespace) -> int:
    """Writes output and rejects, prints the summary; returns the exit code."""
    done = done_outcomes(journal.outcomes)
    failed = {(o.row, o.kind): o.failed for o in journal.outcomes if o.failed and (o.row, o.kind) not in done}
    tally.failed.update(failed.values())
    chosen = problems.columns_of(0).chosen
    made: dict[int, dict[str, tuple[str, ...]]] = {}
    for outcome in done.values():
        made.setdefault(outcome.row, {})[chosen[outcome.kind] or outcome.kind] = outcome.accepted
    write_output(options.input, options.output, made)
    rejects = beside(options.output, ".rejects.jsonl")
    num_rejects = write_rejects(rejects, journal.outcomes)
    print("\n".join(tally.lines()))
    print(f"wrote {options.output}" + (f" and {num_rejects} rejected texts to {rejects}" if num_rejects else ""))
    if failed:
        print(f"{len(failed)} questions have no reply yet; the same command asks them again", file=sys.stderr)
    return INCOMPLETE if failed else 0


def beside(output: Path, suffix: str) -> Path:
    """b.parquet -> b.rejects.jsonl"""
    return output.with_name(output.stem + suffix)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(main())
