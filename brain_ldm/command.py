"""A door's frame: compose the typed config, answer mistakes in one line, call the room."""

import contextlib
import dataclasses
import difflib
import io
import keyword
import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from brain_ldm import sweep
from brain_ldm.errors import InputError

USER_ERROR = 2
STOPPED = 75  # sysexits.h: a failure for now, the same command may be given again
# Choices that are there once their package is.
PLUGINS = (
    "hydra/sweeper/optuna",
    "hydra/launcher/submitit_local",
    "hydra/launcher/submitit_slurm",
)


class Multirun(Callback):
    """What Hydra calls in the process that starts a sweep; conf/command.yaml names it."""

    folder: ClassVar[Path | None] = None  # of the sweep, once it has begun

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Prepare the sweep's folder."""
        try:
            Multirun.folder = sweep.begin(config)
        except InputError as error:  # Hydra would make a warning of it, and go on
            fail(config.hydra.job.name, str(error))


def conf_folder() -> Path:
    """Return conf/: inside an installed wheel, otherwise beside the package."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def register(name: str, schema: type, groups: dict[str, dict[str, type]]) -> None:
    """Put a command's schema, and those of its groups' choices, where conf/ refers to them."""
    store = ConfigStore.instance()
    store.store(name, schema, group="schema")
    for group, choices in groups.items():
        for choice, node in choices.items():
            store.store(choice, node, group=f"schema/{group}")


def command(
    name: str,
    schema: type,
    after: Callable[[Path], None] | None = None,
    **groups: dict[str, type],
) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Make `function(config)` the command `python -m brain_ldm.<name>`.

    Args:
        name: of the command and of its file in conf/.
        schema: dataclass of its options; the function receives an instance.
        after: called with a sweep's folder once its jobs have ended.
        groups: for each config group, the dataclasses of its choices by name.

    A user's mistake, in the config or in what it names, is one line and exit code 2. In a sweep
    (`-m`) the function's value, a float, goes to the sweeper, and a job that fails does not stop
    the others; the exit code is 1 where a job failed by something else than a user's mistake.
    """

    def decorate(function: Callable[[Any], Any]) -> Callable[[], None]:
        def task(config: DictConfig) -> Any:
            # Caught here, since Hydra prints more than one line about an exception of a job.
            try:
                if sweep.in_sweep():
                    out = OmegaConf.select(config, "out")
                    return sweep.attempt(name, out, lambda: function(typed(config)))
                return function(typed(config))
            except sweep.Interrupted as error:
                fail(name, str(error), STOPPED)
            except InputError as error:
                fail(name, str(error))
            except KeyboardInterrupt:
                fail(name, "stopped", STOPPED)

        task.__module__ = f"brain_ldm.{name}"  # Hydra takes the command's name from here

        def main() -> None:
            from dotenv import load_dotenv

            load_dotenv(Path.cwd() / ".env")
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hand the exception over, do not print it
            register(name, schema, groups)
            run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)
            sys.argv[1:] = map(to_field, sys.argv[1:])
            Multirun.folder, jobs = None, []
            try:
                if {"-h", "--help"} & set(sys.argv):
                    show_help(run(task))
                else:
                    run(task)()
            except (HydraException, OmegaConfBaseException) as error:
                fail(name, to_option(explain(error)))
            except Exception as error:
                if type(error).__name__ != "UncompletedJobError":  # submitit's
                    raise
                what = " ".join(str(error).splitlines()[:2])
                fail(name, f"{what}; its log lies beside it; other jobs may run still", 1)
            finally:
                if Multirun.folder is not None:
                    jobs = sweep.finish(name, Multirun.folder)
                    if after is not None:
                        after(Multirun.folder)
            states = {job.state for job in jobs} - {"finished"}
            if states:
                sys.exit(USER_ERROR if states == {"failed"} else 1)

        main.__doc__ = function.__doc__
        return main

    return decorate


def to_field(override: str) -> str:
    """Spell an override as its dataclass does: a word of Python has an underscore, `from_=…`."""
    name, equals, value = override.partition("=")
    return f"{name}_{equals}{value}" if keyword.iskeyword(name) else override


def to_option(text: str) -> str:
    """Spell names of fields as users do, `from_` as `from`: alone, or before their value.

    Nothing else in a text is touched: a folder may have any name.
    """
    return re.sub(rf"(?<![^\s'])({'|'.join(keyword.kwlist)})_(?=[=:]|\Z)", r"\1", text)


def show_help(run: Callable[[], None]) -> None:
    """Print what Hydra prints, called with --help, and leave as it does."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run()
    finally:
        print(to_option(printed.getvalue()), end="")


def fail(name: str, message: str, code: int = USER_ERROR) -> None:
    """Print one line to stderr and leave, by default with the exit code for a user's mistake."""
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def typed(config: DictConfig) -> Any:
    """Return the composed config as its dataclass; refuse keys that no dataclass has.

    Hydra lets `+model.foo=1` through, typed or not; here it is the same mistake as a typo.
    """
    for path, key, fields in _unknown_keys(config):
        raise InputError(_no_such_option(path, key, fields))
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        setter = "a study=…" if "commands" in missing else "an experiment=…"
        raise InputError(
            f"'{missing[0]}' must be given: add {missing[0]}=…, or {setter} that sets it"
        )
    return OmegaConf.to_object(config)


def _unknown_keys(node: DictConfig, path: str = "") -> Iterator[tuple[str, str, list[str]]]:
    schema = OmegaConf.get_type(node)
    fields = (
        [field.name for field in dataclasses.fields(schema)]
        if dataclasses.is_dataclass(schema)
        else None
    )
    for key in node:
        if fields is not None and key not in fields:
            yield path, str(key), fields
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            yield from _unknown_keys(node[key], f"{path}{key}.")


def explain(error: BaseException) -> str:
    """Say in one line what is wrong with a config that did not compose."""
    chain, seen = [], error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    for cause in reversed(chain):
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.key is not None:
            schema = cause.object_type
            fields = (
                [field.name for field in dataclasses.fields(schema)]
                if dataclasses.is_dataclass(schema)
                else []
            )
            path = (cause.full_key or "").removesuffix(str(cause.key))
            return _no_such_option(path, str(cause.key), fields)
    for cause in chain:
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file in PLUGINS:
            group, _, choice = cause.missing_cfg_file.rpartition("/")
            return f"{group}={choice}: not installed; pip install -e '.[sweeps]' in the checkout"
        if isinstance(cause, OmegaConfBaseException):
            # Hydra's own text names the override, OmegaConf's the reason.
            reasons = [str(e).splitlines()[0] for e in (error, cause) if str(e)]
            return ": ".join(dict.fromkeys(reasons))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Hydra lists the group's choices, one a line, and then where it looked for them.
    choices = list(takewhile(lambda line: not line.startswith("Config search"), lines))
    if "does not support sweep type" in choices[0]:
        return "interval() is for Optuna: add hydra/sweeper=optuna, or list the values: a,b,c"
    return f"{choices[0]} {', '.join(choices[1:])}".strip()


def _no_such_option(path: str, key: str, fields: list[str]) -> str:
    key, fields = to_option(key), [to_option(field) for field in fields]
    near = difflib.get_close_matches(key, fields, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif fields:
        hint = f"valid here: {', '.join(fields)}"
    else:
        hint = "this option holds no others"
    return f"no option '{path}{key}'; {hint}"
