"""The exercises: every reference solution passes, and every wrong one gets the verdict that it names; what misuse is told.

A wrong solution names its verdict, the mistake and the rung, in its first line; a spec in its title. They are judged in this
process; how the command runs a file in one of its own is tried with NumPy alone, which starts at once.
"""

import ast
import json
import re
from pathlib import Path

import pytest

import torch_impl

# isort: split
import keras_impl
from shared.checks import Error
from twins import exercises, judge, subjects
from twins.exercises import form

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "solutions"
FILES = sorted(path for path in FOLDER.glob("*/*") if path.suffix in (".py", ".json"))
RIGHT = [path for path in FILES if not path.name.startswith("wrong_")]
WRONG = [path for path in FILES if path.name.startswith("wrong_")]


def name_of(path):
    return f"{path.parent.name}/{path.name}"


def expected(path):
    """(the mistake, or None for one without a name; the rung) of a wrong solution."""
    text = path.read_text(encoding="utf-8")
    words = json.loads(text)["title"].removeprefix("wrong: ") if path.suffix == ".json" else text.splitlines()[0].lstrip("# ")
    suspect, _, rung = words.partition(", rung ")
    return None if suspect == "None" else suspect, int(rung)


@pytest.mark.parametrize("path", RIGHT, ids=name_of)
def test_every_reference_solution_is_right(path):
    verdict = judge.judge(path.parent.name, path)
    assert verdict.passed, verdict.message
    assert 1 in verdict.climbed or 5 in verdict.climbed
    if path.suffix == ".json":
        assert verdict.framework == "PyTorch and Keras"  # it is built in both


@pytest.mark.parametrize("path", WRONG, ids=name_of)
def test_every_wrong_solution_gets_its_verdict(path):
    verdict = judge.judge(path.parent.name, path)
    assert not verdict.passed
    assert (verdict.suspect, verdict.rung) == expected(path), verdict.message
    if verdict.suspect:
        known = (*exercises.load(path.parent.name).suspects, form.DETACHED, form.IN_PLACE, form.RANDOM)
        suspect = next(s for s in known if s.name == verdict.suspect)
        assert verdict.trap == suspect.trap and "nan" not in verdict.message and "{" not in verdict.message


def test_each_lesson_has_three_exercises_and_each_exercise_its_solutions():
    names = exercises.names()
    assert len(names) == len(set(names)) >= 24 and all(len(members) >= 3 for members in exercises.LESSONS.values())
    assert (
        sorted(names) == sorted(path.stem for path in exercises.FOLDER.glob("*.md")) == sorted(p.name for p in FOLDER.iterdir())
    )
    for name in names:
        right = [path.name for path in RIGHT if path.parent.name == name]
        assert right == (["spec.json"] if isinstance(exercises.load(name), form.Network) else ["keras.py", "torch.py"])
        assert len([path for path in WRONG if path.parent.name == name]) >= 3, name
        assert [path.name for path in exercises.solutions(name)] == right
    found = (re.search(r"^(?:import|from) (torch|keras)", path.read_text(encoding="utf-8"), re.M) for path in WRONG)
    frameworks = {match[1] for match in found if match}
    assert frameworks == {"torch", "keras"}


@pytest.mark.parametrize("name", exercises.names())
def test_statements_are_short_and_name_what_is_to_be_written(name):
    statement, exercise = exercises.statement(name), exercises.load(name)
    assert statement.title and statement.hint and len((exercises.FOLDER / f"{name}.md").read_text().splitlines()) <= 25
    if isinstance(exercise, form.Network):
        assert statement.suffix == ".json"
        for layer in exercise.spec()["layers"] if not re.search(r"twins show", statement.text) else ():
            assert f"`{layer['name']}`" in statement.text, layer["name"]
    else:
        assert statement.suffix == ".py" and re.search(rf"`{exercise.name}[`(]", statement.text)
    if isinstance(exercise, form.Layer):  # the names of its arguments, as the reference solutions have them
        tree = ast.parse((FOLDER / name / "keras.py").read_text())
        init = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        signature = re.search(rf"`{exercise.name}\((.*?)\)`", statement.text)[1]
        assert [a.arg for a in init.args.args[1:]] == re.findall(r"(\w+)(?:=[^,]+)?(?:,|$)", signature)


@pytest.mark.parametrize("name", [n for n in exercises.names() if isinstance(exercises.load(n), form.Layer)])
@pytest.mark.parametrize("package", [torch_impl, keras_impl], ids=["torch", "keras"])
def test_the_layer_in_numpy_is_the_reference(name, package):
    """Without a flaw it gives what the reference gives, in both frameworks: a suspect differs by its flaw alone."""
    exercise = exercises.load(name)
    layers = subjects.Layers(exercise, Path("my.py"), None, package.submission, package)
    same = form.Suspect("same", "", flaw="none")
    with layers.precision():
        for rung in (2, 4):
            layers.ours(1)
            ours, numpy = layers.ours(rung), layers.suspected(same, rung)
            assert ours.keys() <= numpy.keys()
            assert all(subjects.agree(ours[key], numpy[key], 1e-12) for key in ours)


INIT = "    def __init__(self, a, b, c, d=1, e=0):\n        super().__init__"
TORCH, MODULE = "from torch import nn\nclass Conv(nn.Conv2d):\n", "import torch\nclass Conv(torch.nn.Module):\n"
FORWARD = f"{TORCH}    def forward(self, x):\n        "
LINES = {  # what a file has: the message on it
    f"{MODULE}    def forward(self, x):\n        return x": r"my\.py: TypeError: .*takes 1 positional",
    "import torch\n\n1 / 0": r"my\.py, line 3: ZeroDivisionError: division by zero$",
    f"{TORCH}    def forward(self, x):\n        return x @ 'a'": r"my\.py, line 4, in forward: ",
    f"{FORWARD}super().forward(x)": "it returns None, expected a tensor: is there a return missing",
    f"{FORWARD}return super().forward(x), x": "it returns several values, expected a tensor",
    f"{FORWARD}return super().forward(x)[0]": r"yours is \(4, 9, 8\), expected \(2, 4, 9, 8\)$",
    f"{FORWARD}return super().forward(x.float())": "All is judged in float64, so set no other dtype",
    f"{TORCH}{INIT}(a, b, c, d, e)\n        self.bias.requires_grad = False": (
        "bias is to be trained, and yours is not: make it a parameter in PyTorch"
    ),
    f"import keras\nclass Conv(keras.layers.Conv2D):\n{INIT}(b, c)\n    def call(self, x):\n        raise ValueError('no')": (
        r"my\.py, line 6, in call: ValueError: no \(Conv\(3, 4, 3, 1, 1\) on "
    ),
    f"{TORCH}{INIT}(a, b, c, d, e, bias=False)": "^the bias is missing",
    f"{MODULE}{INIT}()\n        self.w = torch.nn.Parameter(torch.ones(b))\n    def forward(self, x):\n        return x": (
        "no weight is called 'bias'; yours has w$"
    ),
}


@pytest.mark.parametrize("text", LINES)
def test_code_that_raises_or_lacks_weights_is_wrong_and_told_where(tmp_path, text):
    path = tmp_path / "my.py"
    path.write_text(text)
    verdict = judge.judge("residual_block.conv", path)
    assert not verdict.passed and verdict.rung in (0, 1)
    assert re.search(LINES[text], verdict.message), verdict.message


MISUSE = {
    "import torch\nclass Conv(:": r"my\.py, line 2: not Python: ",
    "x = 1": "it imports neither torch nor keras",
    "import torch, keras": "it imports PyTorch and Keras; write for one of them",
    "import torch\nclass conv(torch.nn.Module):\n    pass": "nothing in it is called 'Conv', did you mean 'conv'",
    "import torch\ndef Conv(*a):\n    pass": r"Conv must be a class that derives from nn\.Module; it is a function",
    "import keras\nclass Conv:\n    pass": r"Conv must be a class that derives from keras\.Layer; it derives from object",
}


@pytest.mark.parametrize("text", MISUSE)
def test_what_cannot_be_judged_is_a_mistake_in_use(tmp_path, text):
    (tmp_path / "my.py").write_text(text)
    with pytest.raises(Error, match=MISUSE[text]):
        judge.judge("residual_block.conv", tmp_path / "my.py")


def test_what_is_near_and_not_equal_was_rounded_and_an_unknown_mistake_is_measured(tmp_path):
    path = tmp_path / "my.py"
    path.write_text("def to_keras(weight):\n    return weight.transpose(2, 3, 1, 0).astype('float32')")
    assert "rounding to float32" in judge.judge("weights.conv", path).message
    path.write_text("def to_keras(weight):\n    return 3 * weight.transpose(2, 3, 1, 0)")
    verdict = judge.judge("weights.conv", path)
    assert (verdict.rung, verdict.suspect) == (2, None) and verdict.message.endswith("Yours is 3 times ours everywhere")
    path.write_text("def to_keras(weight):\n    w = weight.transpose(2, 3, 1, 0).copy()\n    w[0, 2, 1, 3] = 7\n    return w")
    assert "It is farthest at (0, 2, 1, 3): 7, expected " in judge.judge("weights.conv", path).message
    path.write_text("def to_keras(weight):\n    return float('nan') * weight.transpose(2, 3, 1, 0)")
    assert "144 of 144 values are infinite or NaN" in judge.judge("weights.conv", path).message


def test_a_function_that_leaves_its_framework_has_no_gradient(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        "import torch\ndef class_maps(f, w, b):\n    return (torch.einsum('kc,bchw->bkhw', w, f) + b[:, None, None]).detach()"
    )
    verdict = judge.judge("dilation.class_map", path)
    assert (verdict.rung, verdict.passed) == (3, False) and verdict.suspect == "detached"
    assert "no gradient arrives: the gradient of features is zero" in verdict.message and "leaves PyTorch" in verdict.message


def test_an_unknown_mistake_in_a_gradient_is_placed_going_back_from_the_output():
    verdict = judge.judge("residual_block.basic", FOLDER / "residual_block.basic" / "wrong_doubled_gradient.py")
    assert verdict.place.startswith("gradient of bn1.bias: BasicBlock(4, 4, 1)") and "2 times ours" in verdict.message
    assert "is the first to differ; of bn2.bias, bn2.weight, conv2.weight it agrees" in verdict.message


def test_a_spec_with_one_layer_too_many_or_of_other_images_is_wrong(tmp_path):
    path = tmp_path / "my.json"
    spec = exercises.load("spec.lenet").spec()
    path.write_text(json.dumps(spec | {"layers": spec["layers"] + [{"name": "relu5", "type": "relu"}]}))
    assert "layer relu5" in judge.judge("spec.lenet", path).message
    path.write_text(json.dumps(spec | {"input": [1, 32, 32], "layers": spec["layers"][:6]}))
    assert "its images are (1, 32, 32), expected (1, 28, 28)" in judge.judge("spec.lenet", path).message
    path.write_text('{"name":')
    with pytest.raises(Error, match="line 1, column 9: not JSON"):
        judge.judge("spec.lenet", path)


def test_the_command_lists_prints_and_hints(twins):
    done = twins("check")
    assert done.returncode == 0 and len(re.findall(r"^\w+\.\w+ ", done.stdout, re.M)) == len(exercises.names())
    assert [row["exercise"] for row in json.loads(twins("check --json").stdout)] == exercises.names()
    for name in exercises.names():
        statement = exercises.statement(name)
        done = twins("check", name)
        assert statement.title in done.stdout and f"twins check {name} my{statement.suffix}\n" in done.stdout
        assert statement.hint not in done.stdout
    assert "Where the windows" not in twins("check residual_block.conv --hint").stdout
    assert exercises.statement("spec.lenet").hint.splitlines()[0] in twins("check spec.lenet --hint").stdout
    assert "class Conv(keras.Layer)" in twins("check residual_block.conv --solution").stdout


@pytest.mark.parametrize(
    "words, message",
    [
        ("residual_block.convv", "no exercise is called 'residual_block.convv', did you mean 'residual_block.conv'?"),
        ("spec", "no exercise is called 'spec'; of this lesson: spec.lenet, spec.max_pool, spec.bottleneck"),
        ("residual_block", "; of this lesson: residual_block.conv, residual_block.batch_norm, residual_block.basic"),
        ("conv my.py", "; put the lesson before the name: residual_block.conv or weights.conv or dilation.conv"),
        ("my.py residual_block.conv", "no exercise is called 'my.py'; the name of the exercise comes before the file"),
        ("spec.lenet my.py", "my.py: spec.lenet asks for a spec, a file ending in .json"),
        ("weights.conv my.json", "my.json: weights.conv asks for code, a file ending in .py"),
        ("weights.conv missing.py", "missing.py: there is no such file"),
        ("spec.lenet --json", "--json prints a verdict, so it needs a file"),
    ],
)
def test_misuse_of_the_command_has_one_message(twins, words, message):
    done = twins(f"check {words}")
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


RUNS = {  # a function body: (exit status, what is printed)
    "return weight.transpose(2, 3, 1, 0)": (0, "Right: it agrees with the reference on every rung."),
    "return weight.transpose(2, 3, 0, 1)": (1, "In and out are swapped"),
    "while True: pass": (1, "It did not finish within 2 s: is there an endless loop?\n"),
    "import os; os._exit(0)": (1, "Its process ended with status 0, without a verdict"),
    "input()": (1, "EOFError"),
    "raise SystemExit": (1, "\nnumpy.py, line 2, in to_keras: SystemExit"),
}


@pytest.mark.parametrize("body", RUNS)
def test_the_command_runs_the_file_in_a_process_of_its_own(twins, tmp_path, body):
    (tmp_path / "numpy.py").write_text("def to_keras(weight):\n    " + body)  # hides no package of that name
    status, text = RUNS[body]
    done = twins("check", "weights.conv", "numpy.py", "--limit", 2 if "while" in body else 60, folder=tmp_path)
    assert done.returncode == status and text in done.stdout, done.stdout + done.stderr


def test_the_verdict_as_json(twins, tmp_path):
    (tmp_path / "my.py").write_text("def to_keras(weight, c, h, w):\n    return weight.T")
    done = twins("check weights.flatten my.py --json", folder=tmp_path)
    verdict = json.loads(done.stdout)
    assert done.returncode == 1 and verdict["message"]
    assert {key: verdict[key] for key in ("exercise", "passed", "rung", "suspect", "trap")} == {
        "exercise": "weights.flatten", "passed": False, "rung": 2, "suspect": "flatten-order", "trap": "flatten-order"
    }  # fmt: skip
