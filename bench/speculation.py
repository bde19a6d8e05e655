#!/usr/bin/env python3
"""Speculation against the same engine without it: tasks x drafters x batch x temperature.

Tasks: `quote` (a CoQA story, to be repeated), `edit` (an MBPP solution, to be renamed) and `free`
(an MBPP problem, to be solved). Each group of prompts is answered by two engines that take turns of
0.02 s, one with and one without drafts; who does which and who begins changes. Answers that go
round in circles (one 4-gram four times) are left out and counted. The figure is the ratio of tokens
a second from the moment when every stream of the group has its first token; answers with and
without must be equal token for token. With --check a row whose ratio is not more than its standard
error above the bound gets further groups, up to 32, and its figure is of all of them.

Drafters: `ngram` (lookup, the default of the engine), `self` (the model as its own draft: shows
that everything is accepted), `ten` (its first ten layers), `random` (a small model that knows
nothing: shows that it is switched off).
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "bench"))
import draft_models  # noqa: E402
import exactness_text  # noqa: E402
import serving  # noqa: E402

PROGRAM = ROOT / "build" / "bin" / "cogumi-speculation-bench"
PROMPTS = 50
MODEL_PROMPTS = 16  # of draft models, which show that nothing is lost
FIRST_STORY = 100  # those before are for exactness
STORY_CHARACTERS = 700
GROUNDED = ("quote", "edit")
TASKS = (*GROUNDED, "free")
BATCHES, TEMPERATURES = (1, 8, 32), (0, 1)
GROUNDED_BOUND, LOSS_BOUND = 1.3, 0.97
DRAFTERS = ("ngram", "self", "ten", "random")
# Verified drafts of random weights, of all tokens: they are switched off.
RANDOM_BOUND = 0.02
TEN_LAYERS = 10


class SpeculationError(Exception):
    """What went wrong."""


def shortened(story):
    """Whole sentences from the beginning, about as long as an answer may get."""
    text = " ".join(story.split())
    if len(text) <= STORY_CHARACTERS:
        return text
    end = text.rfind(". ", 0, STORY_CHARACTERS)
    return text[:end + 1] if end > 0 else text[:STORY_CHARACTERS]


def make_tasks(kinds, prompts):
    problems = exactness_text.problems()[:prompts]
    tasks = []
    if "quote" in kinds:
        for _, story in exactness_text.stories(FIRST_STORY, prompts):
            tasks.append({"kind": "quote",
                          "prompt": "Repeat the following text word for word.\n\n"
                                    + shortened(story)})
    if "edit" in kinds:
        for problem in problems:
            code = problem["code"].replace("\r\n", "\n")
            name = code.split("def ", 1)[-1].split("(", 1)[0].strip()
            tasks.append({"kind": "edit",
                          "prompt": f"Rename the function `{name}` to `solve` and write the whole "
                                    f"program again.\n\n```python\n{code}\n```"})
    if "free" in kinds:
        for problem in problems:
            tasks.append({"kind": "free", "prompt": problem["text"]})
    return tasks


def of_each_kind(tasks, count):
    """The first `count` tasks of each kind."""
    seen = {}
    return [task for task in tasks
            if seen.setdefault(task["kind"], []).append(task) or len(seen[task["kind"]]) <= count]


def run(arguments, drafter, draft_model, temperature, tasks_path):
    command = [str(PROGRAM), str(serving.model_path()), str(tasks_path),
               "--batches", ",".join(map(str, arguments.batches)),
               "--temperature", str(temperature), "--max-tokens", str(arguments.max_tokens),
               "--groups", str(arguments.groups), "--threads", str(arguments.threads)]
    if arguments.check:
        command += ["--bound", str(LOSS_BOUND)]
    if draft_model:
        command += ["--draft-model", str(draft_model)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        raise SpeculationError(process.stderr.strip() or f"{PROGRAM.name} ended with an error")
    result = json.loads(process.stdout)
    for row in result["rows"]:
        row.update(drafter=drafter, temperature=temperature)
        plain = sum(row["plain_tokens"]) / sum(row["plain_seconds"])
        drafted = sum(row["tokens"]) / sum(row["seconds"])
        row.update(plain_rate=plain, rate=drafted, speed_up=drafted / plain,
                   whole_speed_up=row["whole_plain_seconds"] / row["whole_seconds"])
    return result


def failures_of(row):
    name = f"{row['task']}, {row['drafter']}, batch {row['batch']}, T={row['temperature']}"
    found = []
    if row["different"]:
        found.append(f"{name}: {row['different']} groups were answered differently")
    # A model as large as the one that verifies cannot be faster; its bound is the general one.
    grounded = row["task"] in GROUNDED and row["drafter"] == "ngram" and row["temperature"] == 0
    bound = GROUNDED_BOUND if grounded and row["batch"] == 1 else LOSS_BOUND
    if row["speed_up"] < bound:
        found.append(f"{name}: {row['speed_up']:.3f}, bound {bound}")
    if row["drafter"] == "self" and row["temperature"] == 0 and row["accepted"] != row["drafted"]:
        found.append(f"{name}: {row['accepted']} of {row['drafted']} of its own drafts accepted")
    if row["drafter"] == "random" and row["drafts"] > max(3, RANDOM_BOUND * sum(row["tokens"])):
        found.append(f"{name}: {row['drafts']} drafts in {sum(row['tokens'])} tokens, bound "
                     f"{RANDOM_BOUND:.0%}")
    return found


def missing_of(rows):
    """Rows of the whole table that are not there or show nothing."""
    own = [r for r in rows if r["drafter"] == "self" and r["temperature"] == 0]
    if own and not any(r["drafted"] for r in own):
        return ["self, T=0: nothing was drafted, so that nothing was accepted either"]
    seen = {(r["task"], r["drafter"], r["batch"], r["temperature"]) for r in rows}
    wanted = {(t, d, b, float(c)) for t in TASKS for d in DRAFTERS for b in BATCHES
              for c in TEMPERATURES}
    return [f"{task}, {drafter}, batch {batch}, T={temperature}: not measured"
            for task, drafter, batch, temperature in sorted(wanted - seen)]


def show(row):
    positions = " ".join(f"{accepted / max(1, row['drafts']):.2f}"
                         for accepted in row["accepted_per_position"])
    share = row["accepted"] / row["drafted"] if row["drafted"] else 0
    left_out = f"{row['left_out']}/{row['prompts']}"
    print(f"{row['task']:7}{row['drafter']:8}{row['batch']:6}{row['temperature']:5.1f}"
          f"{row['plain_rate']:9.1f}{row['rate']:9.1f}{row['speed_up']:8.2f}"
          f"{row['whole_speed_up']:8.2f}{share:8.0%}"
          f"{left_out:>9}{row['groups']:8}  {positions}", flush=True)


def parse_arguments():
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(prog="bench/speculation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true",
                        help=f"fail below {GROUNDED_BOUND} on grounded tasks (ngram, batch 1, "
                             f"T=0), below {LOSS_BOUND} anywhere, when answers differ, when a draft "
                             "of `self` is not accepted or `random` goes on; takes the whole table")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--drafters", default=",".join(DRAFTERS))
    parser.add_argument("--batches", type=numbers, default=list(BATCHES))
    parser.add_argument("--temperatures", default=",".join(map(str, TEMPERATURES)))
    parser.add_argument("--prompts", type=int, default=PROMPTS,
                        help=f"of each task; draft models answer {MODEL_PROMPTS} of them")
    parser.add_argument("--groups", type=int, default=0,
                        help="groups of prompts a row, at most; 0: all")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    arguments.tasks = arguments.tasks.split(",")
    arguments.drafters = arguments.drafters.split(",")
    arguments.temperatures = [float(t) for t in arguments.temperatures.split(",")]
    if unknown := set(arguments.drafters) - set(DRAFTERS):
        parser.error(f"--drafters: {', '.join(sorted(unknown))} is not one of {DRAFTERS}")
    if unknown := set(arguments.tasks) - set(TASKS):
        parser.error(f"--tasks: {', '.join(sorted(unknown))} is not one of {', '.join(TASKS)}")
    if arguments.check and (arguments.prompts < PROMPTS or arguments.groups):
        parser.error(f"--check needs {PROMPTS} prompts and all groups")
    return arguments


def main():
    arguments = parse_arguments()
    rows, failures, configuration = [], [], None
    with tempfile.TemporaryDirectory(prefix="cogumi-speculation-") as folder:
        folder = pathlib.Path(folder)
        tasks = make_tasks(arguments.tasks, arguments.prompts)
        drafts = {"ngram": None, "self": serving.model_path()}
        if "ten" in arguments.drafters:
            drafts["ten"] = folder / "ten.gguf"
            draft_models.first_layers(serving.model_path(), drafts["ten"], TEN_LAYERS)
        if "random" in arguments.drafters:
            drafts["random"] = folder / "random.gguf"
            draft_models.random_weights(serving.model_path(), drafts["random"])
        print(f"{'task':7}{'drafter':8}{'batch':>6}{'T':>5}{'without':>9}{'with':>9}{'ratio':>8}"
              f"{'whole':>8}{'kept':>8}{'circles':>9}{'groups':>8}"
              "  accepted per position and draft", flush=True)
        for drafter in arguments.drafters:
            tasks_path = folder / f"{drafter}.json"
            tasks_path.write_text(json.dumps(
                tasks if drafter == "ngram" else of_each_kind(tasks, MODEL_PROMPTS)))
            for temperature in arguments.temperatures:
                result = run(arguments, drafter, drafts[drafter], temperature, tasks_path)
                configuration = result["kernel_configuration"]
                for row in result["rows"]:
                    show(row)
                    failures += failures_of(row)
                rows += result["rows"]
    if arguments.check:
        failures += missing_of(rows)
    print(f"{configuration}; tokens a second and their ratio from the last first token of a group; "
          "whole: of the time with prompts")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"kernel_configuration": configuration, "rows": rows}, file, indent=1)
    return serving.verdict(failures) if arguments.check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SpeculationError, exactness_text.TextError) as error:
        sys.exit(f"bench/speculation: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
