"""What runs in the sandbox around a real program: it is asked, it is fed, its answers are judged.

    answer   calls the program's function and returns what it gives
    script   feeds a program that reads standard input and returns what it prints
    judge    puts answers to the tests

programs.py in data/ sends these as jobs. `judge` runs in a process of its own, where the tests and
the reference are and the program is not. Both sides exchange JSON text that keeps the types of
plain data,

    (1, {"a": 2.0})  <->  {"tuple": [1, {"dict": [{"tuple": ["a", 2.0]}]}]}

and nothing else, so no method of a program's class (an `__eq__` that says yes) reaches the tests.
"""

import contextlib
import functools
import io
import json
import sys
import types

KINDS = {
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "set": set,
    "frozenset": frozenset,
    "bytes": bytes,
}
# As arguments: f((1, "a"), int)
TYPES = KINDS | {"bool": bool, "int": int, "float": float, "complex": complex, "str": str}


class Made:
    """Stands in a test for an object of a class that the program must define.

    It knows how it was made, and what was set on it.
    """

    def __init__(self, name, args, kwargs):
        vars(self)["made"] = name, args, kwargs


def encode(value):
    """Plain data as the JSON shown above; raises TypeError for anything else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, type) and value in TYPES.values():
        return {"type": [value.__name__]}
    if isinstance(value, Made):
        attributes = dict(vars(value))
        name, args, kwargs = attributes.pop("made")
        return {"made": [name, encode(args), encode(kwargs), encode(attributes)]}
    for name, kind in KINDS.items():  # what extends them counts as them: a Counter is a dict
        if isinstance(value, kind):
            items = value.items() if kind is dict else value
            return {name: [encode(item) for item in items]}
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
    """The namespace that the sources, run one after the other, leave."""
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses look up their module
    for source in sources:
        exec(compile(source, "program", "exec", dont_inherit=True), vars(module))
    return vars(module)


def answer(before, program, function, calls):
    """What `function` returns for each call, as text; raises as the program does."""
    namespace = load(before, program)

    answers = []
    for call in calls:
        args, kwargs = decode(json.loads(call), namespace)
        answers.append(json.dumps(encode(namespace[function](*args, **kwargs))))
    return answers


def script(program, inputs):
    """What a program that reads sys.stdin prints for each input; raises as it does."""
    code = compile(program, "program", "exec", dont_inherit=True)
    # python -S has neither
    usual = {"__name__": "__main__", "exit": sys.exit, "quit": sys.exit}

    outputs = []
    for text in inputs:
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
        sys.stdout = out
        with contextlib.suppress(SystemExit):  # many a right program ends so
            exec(code, dict(usual))
        outputs.append(out.buffer.getvalue().decode())
    return outputs


def judge(before, reference, tests, function, calls, answers):
    """Run the tests and return the calls of `function` that they make; raises where they fail.

    With `answers` None the reference answers, which shows what a program has to be asked. Else the
    program's answers to those `calls` are given back in their order. The tests have a namespace of
    their own, so that a reference that calls itself does not ask the program.

    Tests may catch exceptions, so none of these means that a program passes: whatever goes wrong
    with an answer fails before or after the tests. A reference that raises has no answer.
    """
    namespace = load(before, reference)
    made, failed = [], []
    values = None
    if answers is not None:
        # read before any test: nothing of a program's classes, and as many as were asked for
        values = [decode(json.loads(answer), {}) for answer in answers]
        if len(values) != len(calls):
            raise LookupError("not every call was answered")

    def ask(*args, **kwargs):
        try:
            call = json.dumps(encode((args, kwargs)))
            made.append(call)
            if values is None:
                args, kwargs = decode(json.loads(call), namespace)
                given = json.dumps(encode(namespace[function](*args, **kwargs)))
                return decode(json.loads(given), {})
            if made != calls[: len(made)]:
                raise LookupError("the tests ask something else than they asked of the reference")
            return values[len(made) - 1]
        except BaseException:
            failed.append(True)
            raise

    # The tests' own dictionary: they set names that the reference must not see.
    test_namespace = namespace | stand_ins(namespace) | {function: ask}
    exec(compile(tests, "tests", "exec", dont_inherit=True), test_namespace)
    if failed:
        raise LookupError("a call has no answer, and the tests caught that")
    return made


def stand_ins(namespace):
    """For each class that the program defines, what makes a Made of its name."""
    found = {}
    for name, value in namespace.items():
        if isinstance(value, type) and getattr(value, "__module__", "") == "program":
            found[name] = functools.partial(made_of, name)
    return found


def made_of(name, /, *args, **kwargs):
    return Made(name, args, kwargs)
