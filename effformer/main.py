"""Train, evaluate, predict: flags and process setup, nothing else.

  python -m effformer.main --config=configs/lra_text.py:linear,quick \
    --workdir=runs/quickstart --config.train.num_steps=500
  python -m effformer.main --mode=predict --workdir=runs/quickstart \
    --input='a fine film' --input=@review.txt

Exit codes: 0 done, 2 config, 3 data, 4 checkpoint or run folder, 5 non-finite,
143 stopped by a signal (and saved, if there was something to save).
"""

import os
import pathlib
import sys
import time
import traceback
from collections.abc import Sequence

from absl import flags

from effformer import errors
from effformer.train import preemption

MODES = (
  *('train', 'eval', 'predict', 'generate', 'profile', 'efficiency'),
  *('compress', 'dry_run'),
)
_PROGRAM = 'python -m effformer.main'


def define_flags() -> flags.FlagValues:
  """The flags of the command line, apart from --config.KEY."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'config',
    None,
    'Config file, with its argument after a colon: '
    'configs/lra_text.py:linear,quick. Single keys are set by '
    '--config.train.num_steps=500. Default: that of the run in --workdir.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run; the same command with the same folder goes on where '
    'it stopped. Default: runs/<config>-<time>.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'mode',
    'train',
    MODES,
    'train to the end and test; eval: score the run in --workdir; predict: '
    'the classes of each --input by that run, or how alike two are; generate: '
    'what follows each --input; profile: a trace of a few training steps; '
    'efficiency: time and memory beside exact softmax at 1K to 4K tokens; '
    'compress: carry out the recipe of the config and report on it; dry_run: '
    'build and compile all, train and write nothing.',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'input',
    [],
    'What --mode=predict or generate is about, once for each: a text or an '
    'expression, @FILE for one in a file, the path of an image; of pairs both '
    'texts, one after the other.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'num_tokens', 200, 'How many tokens to generate.', flag_values=values
  )
  flags.DEFINE_float(
    'temperature',
    1.0,
    'Of generating: 0 takes the most probable token.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'top_k',
    0,
    'Of generating: only the so many most probable tokens; 0 = all.',
    flag_values=values,
  )
  flags.DEFINE_integer('sampling_seed', 0, 'Of generating.', flag_values=values)
  flags.DEFINE_bool(
    'debug', False, 'Show the traceback of an error.', flag_values=values
  )
  flags.DEFINE_bool(
    'distributed',
    False,
    'One of several processes; on Cloud TPU, SLURM and MPI they find each '
    'other, elsewhere give the three flags below.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0.', flag_values=values
  )
  flags.DEFINE_integer(
    'num_processes', None, 'How many processes.', flag_values=values
  )
  flags.DEFINE_integer(
    'process_id', None, 'Which one this is, from 0.', flag_values=values
  )
  flags.DEFINE_bool(
    'help', False, 'Show this.', short_name='h', flag_values=values
  )
  return values


def main(argv: Sequence[str]) -> int:
  """Runs one command line and returns its exit code."""
  stop = preemption.Stop()
  try:
    return _guarded(argv, stop)
  except errors.Preempted as reason:
    # The signal came while the process was leaving, and no other one raises.
    stop.uninstall()
    return _stopped(reason)


def _guarded(argv, stop) -> int:
  values = define_flags()
  try:
    stop.install()
    _run(argv, values, stop)
    return 0
  except errors.Preempted as reason:
    return _stopped(reason)
  except errors.UserError as error:
    if values.is_parsed() and values.debug:
      traceback.print_exc()
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  finally:
    stop.uninstall()


def _stopped(reason: errors.Preempted) -> int:
  print(f'stopped: {reason}', file=sys.stderr)
  return reason.exit_code


def _run(argv, values, stop) -> None:
  # Imported here and below, not on top: the handlers of `stop` must stand
  # before anything slow is loaded, and a wrong config must not wait for jax.
  from effformer import config as config_lib

  overrides, rest = config_lib.split_flags(argv)
  try:
    unknown = values(rest)[1:]
  except flags.Error as error:
    raise errors.ConfigError(f'{error}\nSee {_PROGRAM} --help.') from error
  if values.help:
    print(f'{__doc__}\n{values.main_module_help() or values.get_help()}')
    return
  if unknown:
    raise errors.ConfigError(
      f'argument {unknown[0]!r} is not understood; flags start with --.\n'
      f'See {_PROGRAM} --help.'
    )
  many = (values.num_processes, values.process_id)
  if (values.coordinator is None) != (None in many):
    raise errors.ConfigError(
      '--coordinator, --num_processes and --process_id go together.\n'
      'Give all three, or --distributed where the processes find each other.'
    )
  is_one_of_many = values.distributed or values.coordinator is not None
  if is_one_of_many and values.mode != 'dry_run' and not values.workdir:
    raise errors.ConfigError(
      'several processes need one folder for their run.\n'
      'Give all of them the same --workdir, on a disk that all can write.'
    )
  _check_flags_of_modes(values)
  chosen = values.config or _stored_config(values.workdir)
  if not chosen:
    _refuse_without_run(values)
    where = f', and {values.workdir} holds no run' if values.workdir else ''
    raise errors.ConfigError(
      f'no --config given{where}.\nFor example: '
      f'{_PROGRAM} --config=configs/lra_text.py:linear,quick'
    )
  config, overridden = config_lib.load(chosen, overrides)
  is_small = bool(config.compress.steps)
  if is_small and values.mode not in ('compress', 'predict'):
    raise errors.ConfigError(
      f'this config has the steps of a compression, and --mode={values.mode} '
      'would leave them out.\nAdd --mode=compress.'
    )
  # A signal that breaks off the start of an extension module may abort the
  # process when somebody imports it again.
  with stop.loop():
    import jax

    from effformer.train import screen, session

  _set_up_jax(values, stop)
  console = screen.Screen(quiet=jax.process_index() != 0)
  if values.mode not in ('predict', 'generate'):
    console.say(*config_lib.explain(config, overridden))
  if values.mode == 'dry_run':
    session.dry_run(config, console)
    return
  folder = values.workdir or _default_workdir(chosen)
  if values.mode == 'predict' and is_small:
    from effformer.compress import command

    command.predict(config, folder, values.input, console)
  elif values.mode == 'predict':
    from effformer.train import prediction

    prediction.predict(config, folder, values.input, stop, console)
  elif values.mode == 'generate':
    from effformer.train import generation

    sampling = generation.Sampling(
      values.num_tokens, values.temperature, values.top_k, values.sampling_seed
    )
    generation.generate(config, folder, values.input, sampling, stop, console)
  elif values.mode == 'profile':
    from effformer.train import profile

    profile.profile(config, folder, console)
  elif values.mode == 'efficiency':
    from effformer.train import efficiency

    efficiency.measure(config, folder, console)
  elif values.mode == 'compress':
    _compress(config, folder, stop, console)
  else:
    run = session.evaluate if values.mode == 'eval' else session.train
    run(config, folder, stop, console)


def _compress(config, folder, stop, console) -> None:
  from effformer.compress import command
  from effformer.report import compression

  command.compress(config, folder, stop, console)
  console.say(f'report: {compression.write([folder], folder)}')


def _check_flags_of_modes(values) -> None:
  """Refuses flags that the mode would ignore."""
  sampling = ('num_tokens', 'temperature', 'top_k', 'sampling_seed')
  for names, modes in (
    (('input',), ('predict', 'generate')),
    (sampling, ('generate',)),
  ):
    for name in names:
      if values[name].present and values.mode not in modes:
        raise errors.ConfigError(
          f'--{name} goes with --mode={" or ".join(modes)}, not '
          f'{values.mode}.\n'
          f'Leave it out, or add --mode={modes[0]}.'
        )


def _refuse_without_run(values) -> None:
  """Says which folder lacks the run, where the mode is about one."""
  if values.mode not in ('eval', 'predict', 'generate'):
    return
  if not values.workdir:
    raise errors.ConfigError(
      f'--mode={values.mode} is about a run, and no --workdir is given.\n'
      'Give the --workdir of a run.'
    )
  raise errors.CheckpointError(
    f'{values.workdir} holds no run: it has no config.json.\n'
    'Give the --workdir of a run, or train one with --mode=train.'
  )


def _stored_config(folder: str | None) -> str | None:
  """The config of the run in a folder, if there is one."""
  path = pathlib.Path(folder or '') / 'config.json'
  # Unlike `is_file`, false for a name that no folder can have.
  return str(path) if folder and os.path.isfile(path) else None


def _default_workdir(config: str) -> str:
  name = pathlib.Path(config.partition(':')[0]).stem
  return f'runs/{name}-{time.strftime("%Y%m%d-%H%M%S")}'


def _set_up_jax(values, stop) -> None:
  import jax

  if not jax.config.jax_compilation_cache_dir:
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update(
      'jax_compilation_cache_dir', str(pathlib.Path(home) / 'effformer/jax')
    )
  if values.distributed or values.coordinator is not None:
    try:
      jax.distributed.initialize(
        values.coordinator, values.num_processes, values.process_id
      )
    except (ValueError, RuntimeError) as error:
      raise errors.ConfigError(
        f'the processes did not find each other: {error}\n'
        'Give --coordinator=HOST:PORT --num_processes=N --process_id=I.'
      ) from error
    stop.install()
  try:
    jax.devices()
  except RuntimeError as error:
    first = str(error).splitlines()[0]
    raise errors.ConfigError(
      f'jax finds no device: {first}\nSet JAX_PLATFORMS=cpu to use the CPU.'
    ) from error


def _leaves_at_once(code: int) -> bool:
  """Whether the process ends without taking the interpreter down.

  The threads of a save that failed would print tracebacks by the hundred
  meanwhile, and what a signal broke off within a compilation may crash then.
  Several processes say goodbye to each other, so that none takes another's end
  for an accident.
  """
  if code == errors.CheckpointError.exit_code:
    return True
  jax = sys.modules.get('jax')
  is_one_of_many = jax is not None and jax.distributed.is_initialized()
  return code == errors.Preempted.exit_code and not is_one_of_many


if __name__ == '__main__':
  code = main(sys.argv)
  if _leaves_at_once(code):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)
