"""What runs in the sandbox around a program: `answer` calls it, `script` feeds it, `judge` puts its answers to tests.

The sandbox's server imports it before it forks, the trainer never does. `judge` runs in a process of its own, where the tests
and the reference are and the program is not. Both sides exchange JSON text that keeps the types of plain data,

    (1, {"a": 2.0})  <->  {"tuple": [1, {"dict": [{"tuple": ["a", 2.0]}]}]}

and nothing else, so no method of a program's class (an `__eq__` that says yes) reaches the tests.
"""

import contextlib
import io
import json
import sys
import types

KINDS = {kind.__name__: kind for kind in (list, tuple, dict, set, frozenset, bytes)}
TYPES = KINDS | {
    kind.__name__: kind for kind in (bool, int, float, complex, str)
}  # as arguments: f((1, "a"), int)


class Made:
    """Stands in a test for an object of a class that the program must define: how it was made, and what was set on it."""

    def __init__(self, name, args, kwargs):
        vars(self)["made"] = name, args, kwargs


def encode(value):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, type) and value in TYPES.values():
        return {"type": [value.__name__]}
    if isinstance(value, Made):
        name, args, kwargs = vars(value)["made"]
        return {
            "made": [
                name,
                *map(encode, (args, kwargs, {k: v for k, v in vars(value).items() if k != "made"})),
            ]
        }
    for name, kind in KINDS.items():  # what extends them counts as them: a Counter is a dict
        if isinstance(value, kind):
            return {name: [encode(item) for item in (value.items() if kind is dict else value)]}
    raise TypeError(f"{type(value).__name__} is no plain data")


def decode(value, namespace):
    """The inverse; objects are made anew with the classes of `namespace`."""
    if type(value) is not dict:
        return value
    [(kind, items)] = value.items()
    items = [decode(item, namespace) for item in items]
    if kind == "complex":
        return complex(*items)
    if kind == "type":
        return TYPES[items[0]]
    if kind == "made":
        name, args, kwargs, attributes = items
        made = namespace[name](*args, **kwargs)
        for attribute, item in attributes.items():
            setattr(made, attribute, item)
        return made
    return KINDS[kind](items)


def load(*sources):
    module = sys.modules["program"] = types.ModuleType(
        "program"
    )  # dataclasses look up their module
    for source in sources:
        exec(compile(source, "program", "exec", dont_inherit=True), vars(module))
    return vars(module)


def answer(before, program, function, calls):
    """What `function` returns for each call, as text; raises as the program does."""
    namespace, answers = load(before, program), []
    for call in calls:
        args, kwargs = decode(json.loads(call), namespace)
        answers.append(json.dumps(encode(namespace[function](*args, **kwargs))))
    return answers


def script(program, inputs):
    """What a program that reads sys.stdin prints for each input; raises as it does."""
    code, outputs = compile(program, "program", "exec", dont_inherit=True), []
    for text in inputs:
        sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
        sys.stdout = out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        with contextlib.suppress(SystemExit):  # many a right program ends so
            exec(code, {"__name__": "__main__"})
        outputs.append(out.buffer.getvalue().decode())
    return outputs


def judge(before, reference, tests, function, calls, answers):
    """Run the tests and return the calls of `function` that they make; raises where they fail.

    With `answers` None the reference answers, which shows what a program has to be asked. Else the program's answers to
    those `calls` are given back in their order. The tests have a namespace of their own, so that a reference that calls
    itself does not ask the program.
    """
    namespace, made = load(before, reference), []

    def ask(*args, **kwargs):
        made.append(call := json.dumps(encode((args, kwargs))))
        if answers is None:
            args, kwargs = decode(json.loads(call), namespace)
            return decode(json.loads(json.dumps(encode(namespace[function](*args, **kwargs)))), {})
        if call != calls[len(made) - 1]:
            raise LookupError("the tests ask for something else than they asked of the reference")
        return decode(json.loads(answers[len(made) - 1]), {})

    def maker(name):
        return lambda *args, **kwargs: Made(name, args, kwargs)

    classes = {
        name: maker(name)
        for name, value in namespace.items()
        if getattr(value, "__module__", "") == "program" and isinstance(value, type)
    }
    exec(
        compile(tests, "tests", "exec", dont_inherit=True), {**namespace, **classes, function: ask}
    )
    return made
