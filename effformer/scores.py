"""What each task is scored by, of what is shown times 100 and compared."""

ACCURACY, PEARSON = 'accuracy', 'pearson'
_OTHERS = {'similarity': PEARSON}


def of_task(name: str) -> str:
  """The measure of a task that is its score; 1 is the best there is."""
  return _OTHERS.get(name, ACCURACY)
