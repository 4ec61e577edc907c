"""The workflows of GitHub cannot run here: this reads that what they call exists and that their versions agree."""

import copy
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
ACTIONS = {  # the major versions that are known to exist
    "actions/checkout": "v5",
    "actions/setup-python": "v6",
    "actions/upload-pages-artifact": "v4",
    "actions/deploy-pages": "v4",
}
WRITES = {  # who may write what
    ("book.yml", "deploy"): {"pages": "write", "id-token": "write"},
    ("release.yml", "release"): {"contents": "write"},
}
OLDEST, NEWEST = "3.11", "3.13"


def jobs(workflows):
    for file, workflow in workflows.items():
        for name, job in workflow["jobs"].items():
            yield file, name, job


def steps(workflows):
    for file, name, job in jobs(workflows):
        for step in job["steps"]:
            yield f"{file}, {name}", step


def pythons(workflows):
    """The versions that each job sets up."""
    for file, name, job in jobs(workflows):
        for step in job["steps"]:
            if "python-version" in (inputs := step.get("with", {})):
                wanted = inputs["python-version"]
                matrix = job.get("strategy", {}).get("matrix", {}).get("python", [])
                for version in matrix if wanted == "${{ matrix.python }}" else [wanted]:
                    yield f"{file}, {name}", version


def listed(name):
    """A list of pinned packages under scripts/, and the Python that it states."""
    text = (ROOT / "scripts" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)==(.*)$", text, re.MULTILINE)), re.search(r"^# python (.*)$", text, re.M)[1]


# The rules. Each takes the workflows and yields a complaint for each thing that breaks it.


def commands_exist(workflows):
    for where, step in steps(workflows):
        for line in step.get("run", "").splitlines():
            if found := re.match(r"make (?:-\S+ )*(.*)$", line):
                yield from (f"{where}: no target {word}" for word in found[1].split() if word not in TARGETS)
            for path in re.findall(r"(?:scripts|tests|companion|benchmarks)(?:/[\w./-]+)?|\.ci/\w+", line):
                if not (ROOT / path).exists():
                    yield f"{where}: no file {path}"
        if (path := step.get("with", {}).get("cache-dependency-path", "")) and not (ROOT / path).exists():
            yield f"{where}: no file {path}"


def pythons_supported(workflows):
    lowest = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"])[1]
    if lowest != OLDEST:
        yield f"requires-python is {lowest}, and the oldest tested {OLDEST}"
    for where, version in pythons(workflows):
        if not isinstance(version, str) or not re.fullmatch(r"3\.\d+", version):
            yield f"{where}: write Python {version!r} as a text such as '3.11': 3.10 as a number is 3.1"
        elif not int(lowest[2:]) <= int(version[2:]) <= int(NEWEST[2:]):
            yield f"{where}: Python {version} is not from {lowest} to {NEWEST}"


def oldest_and_newest_tested(workflows):
    matrix = workflows["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"]["python"]
    if sorted(matrix) != [OLDEST, NEWEST]:
        yield f"the tests run on {matrix}, and must on {OLDEST} and {NEWEST}"
    for job, name in [("tests.yml, lowest", "lowest.txt"), ("weekly.yml, colab", "colab.txt")]:
        if listed(name)[1] not in [version for where, version in pythons(workflows) if where == job]:
            yield f"{job} must run with the Python that scripts/{name} states"


def actions_known(workflows):
    for where, step in steps(workflows):
        if "uses" in step:
            name, _, version = step["uses"].partition("@")
            if ACTIONS.get(name) != version:
                yield f"{where}: {step['uses']} is not in ACTIONS"
        elif "run" not in step:
            yield f"{where}: a step that does nothing"


def few_permissions(workflows):
    for file, workflow in workflows.items():
        if workflow.get("permissions") != {"contents": "read"}:
            yield f"{file} must start from contents: read"
    for file, name, job in jobs(workflows):
        if job.get("permissions", {}) != WRITES.get((file, name), {}):
            yield f"{file}, {name} may write {job.get('permissions')}"


def ends_by_itself(workflows):
    for file, workflow in workflows.items():
        if "group" not in workflow.get("concurrency", {}):
            yield f"{file} has no concurrency group"
    for file, name, job in jobs(workflows):
        if not 0 < job.get("timeout-minutes", 0) <= 120:
            yield f"{file}, {name} has no timeout of at most two hours"


def jobs_known(workflows):
    for file, name, job in jobs(workflows):
        needs = job.get("needs", [])
        for other in [needs] if isinstance(needs, str) else needs:
            if other not in workflows[file]["jobs"]:
                yield f"{file}, {name} waits for {other}, which is not there"


def no_untrusted_text_in_a_shell(workflows):
    for where, step in steps(workflows):
        if "${{" in step.get("run", ""):
            yield f"{where}: hand {step['run']!r} its value through env"


RULES = [
    commands_exist,
    pythons_supported,
    oldest_and_newest_tested,
    actions_known,
    few_permissions,
    ends_by_itself,
    jobs_known,
    no_untrusted_text_in_a_shell,
]


def test_there_are_workflows():
    assert set(WORKFLOWS) == {"book.yml", "release.yml", "tests.yml", "weekly.yml"}
    triggers = {name: workflow[True] for name, workflow in WORKFLOWS.items()}  # YAML reads the key `on` as true
    assert {"push", "pull_request"} <= set(triggers["tests.yml"]) and "schedule" in triggers["weekly.yml"]
    assert triggers["release.yml"] == {"push": {"tags": ["v*"]}}
    assert WORKFLOWS["weekly.yml"]["jobs"]["links"]["continue-on-error"] is True
    said = {name: " ".join(step.get("run", "") for _, step in steps({name: WORKFLOWS[name]})) for name in WORKFLOWS}
    assert (
        "make test" in said["tests.yml"] and "make book" in said["book.yml"] and "make release" in said["release.yml"]
    )
    for word in ("make colab", "--newest", "linkcheck"):
        assert word in said["weekly.yml"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    assert not list(rule(WORKFLOWS))


def only_step(workflows, file, job, key, value):
    return next(s for s in workflows[file]["jobs"][job]["steps"] if str(s.get(key, "")).startswith(value))


STEP = "{'python"  # how the inputs of the step that sets Python up begin
BREAKS = [
    (commands_exist, lambda w: only_step(w, "book.yml", "build", "run", "make").update(run="make boook")),
    (
        commands_exist,
        lambda w: only_step(w, "weekly.yml", "newest", "run", "python scr").update(run="python scripts/x.py"),
    ),
    (
        commands_exist,
        lambda w: only_step(w, "book.yml", "build", "with", STEP)["with"].update({"cache-dependency-path": "a.txt"}),
    ),
    (
        pythons_supported,
        lambda w: w["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"].update(python=["3.10", "3.13"]),
    ),
    (pythons_supported, lambda w: w["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"].update(python=[3.11, "3.13"])),
    (
        pythons_supported,
        lambda w: only_step(w, "book.yml", "build", "with", STEP)["with"].update({"python-version": "3.99"}),
    ),
    (oldest_and_newest_tested, lambda w: w["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"].update(python=["3.13"])),
    (
        oldest_and_newest_tested,
        lambda w: only_step(w, "weekly.yml", "colab", "with", STEP)["with"].update({"python-version": "3.11"}),
    ),
    (
        actions_known,
        lambda w: only_step(w, "book.yml", "build", "uses", "actions/c").update(uses="actions/checkout@v99"),
    ),
    (actions_known, lambda w: w["book.yml"]["jobs"]["build"]["steps"].append({"name": "rest"})),
    (few_permissions, lambda w: w["tests.yml"].pop("permissions")),
    (few_permissions, lambda w: w["book.yml"]["jobs"]["build"].update(permissions={"contents": "write"})),
    (ends_by_itself, lambda w: w["book.yml"]["jobs"]["deploy"].pop("timeout-minutes")),
    (ends_by_itself, lambda w: w["weekly.yml"].pop("concurrency")),
    (jobs_known, lambda w: w["book.yml"]["jobs"]["deploy"].update(needs="built")),
    (
        no_untrusted_text_in_a_shell,
        lambda w: w["book.yml"]["jobs"]["build"]["steps"].append({"run": "echo ${{ github.head_ref }}"}),
    ),
]


def test_every_rule_is_broken_below():
    assert {rule for rule, _ in BREAKS} == set(RULES)


@pytest.mark.parametrize(("rule", "damage"), BREAKS)
def test_rule_can_fail(rule, damage):
    workflows = copy.deepcopy(WORKFLOWS)
    damage(workflows)
    assert list(rule(workflows))


def test_the_lowest_versions_are_those_declared():
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["plots"], *extras["data"], *extras["cli"], *extras["metrics"]]
    floors = dict(line.split(">=") for line in declared)
    pins, _ = listed("lowest.txt")
    for name, floor in floors.items():
        assert re.sub(r"(\.0)+$", "", pins[name]) == re.sub(r"(\.0)+$", "", floor), name


def test_colab_has_what_pyproject_asks_for():
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["plots"], *extras["data"], *extras["cli"], *extras["metrics"]]
    pins, python = listed("colab.txt")
    for name, floor in (line.split(">=") for line in declared):
        assert tuple(map(int, pins[name].split("."))) >= tuple(map(int, floor.split("."))), name
    assert python == "3.13"
    told = {"torch": "2.11.0", "numpy": "2.1.3", "ipywidgets": "7.7.1", "ipython": "7.34.0", "scikit-learn": "1.6.1"}
    assert told.items() <= pins.items() and pins["matplotlib"].startswith("3.10.")
