"""What Pathfinder images are made of, for each resolution and difficulty.

The published parameters (docstrings of the data sets of the Long Range Arena;
Tay et al., 2020, arXiv 2011.04006), and our choice where they are silent.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the images of a data set are made of. Lengths are in pixels.

  Attributes:
    resolution: rows and columns of an image.
    contour_length: paddles of each of the two long contours, 3 or more.
    distractor_length, num_distractors: paddles of a distractor, and how many.
    paddle_length, paddle_thickness: of a paddle.
    paddle_margins: gap between paddles that follow each other, and least
      distance of all others from edge to edge; each image draws one of these.
    continuity: from a paddle to the next a contour turns by at most 45 degrees
      divided by this; 0.25 or more.
    seed_distance: between the origins of the two long contours.
    marker_radius: of a disc.
    contrast: of a paddle, as a share of white; above 1 it makes up for paddles
      thinner than a pixel.
    padding: margin of the image that stays black.

  Raises:
    ValueError: a value is out of range.
  """

  resolution: int
  contour_length: int
  distractor_length: int
  num_distractors: int
  paddle_length: float
  paddle_thickness: float
  paddle_margins: tuple[float, ...]
  continuity: float
  seed_distance: float
  marker_radius: float
  contrast: float
  padding: float

  def __post_init__(self):
    lowest = {
      'contour_length': 3,
      'distractor_length': 1,
      'num_distractors': 0,
      'continuity': 0.25,
      'padding': 0,
    }
    for name, value in dataclasses.asdict(self).items():
      values = value if name == 'paddle_margins' else (value,)
      if name in lowest:
        is_fine, rule = value >= lowest[name], f'at least {lowest[name]}'
      else:
        is_fine, rule = values and min(values) > 0, 'positive'
      if not is_fine:
        raise ValueError(f'{name} must be {rule}: {value}')
    widest = max(2 * self.marker_radius, self.paddle_thickness)
    if self.resolution <= 2 * self.padding + widest:
      raise ValueError(
        f'resolution {self.resolution} has no room for padding '
        f'{self.padding} and marker radius {self.marker_radius}'
      )


# Paddles of a long contour. The release calls the folder of its easy images
# "curv_baseline" and gives no number for it; 6 is our choice.
DIFFICULTIES = {'easy': 6, 'intermediate': 9, 'hard': 14}

# As published, but where the release says nothing or "default". These are our
# choice: beyond 32 paddles four times as long as thick (as they are at 32) with
# paddle contrast 1; of the several continuities of 64 and 128 the first; at 256
# the seed distance. `contrast` is snake contrast times paddle contrast. The
# release draws larger and scales down; here coverage is computed.
_PUBLISHED = {
  32: {
    'paddle_length': 2,
    'paddle_thickness': 0.5,
    'paddle_margins': (1,),
    'continuity': 1.0,
    'seed_distance': 7,
    'marker_radius': 1.5,
    'contrast': 2 * 0.75,
  },
  64: {
    'paddle_length': 4,
    'paddle_thickness': 1,
    'paddle_margins': (1,),
    'continuity': 1.8,
    'seed_distance': 12,
    'marker_radius': 2.5,
    'contrast': 0.8,
  },
  128: {
    'paddle_length': 6,
    'paddle_thickness': 1.5,
    'paddle_margins': (2, 3),
    'continuity': 1.8,
    'seed_distance': 20,
    'marker_radius': 3,
    'contrast': 0.9,
  },
  256: {
    'paddle_length': 8,
    'paddle_thickness': 2,
    'paddle_margins': (3,),
    'continuity': 1.8,
    'seed_distance': 32,
    'marker_radius': 5,
    'contrast': 1.0,
  },
}
_DISTRACTOR_PADDLES = {32: 20, 64: 22, 128: 35, 256: 30}

# Distractors of easier images by the rule for the hard ones, and padding 1 at
# 256 as elsewhere: our choice again.
SETTINGS = {
  (resolution, difficulty): Setting(
    resolution=resolution,
    contour_length=length,
    distractor_length=length // 3,
    num_distractors=_DISTRACTOR_PADDLES[resolution] // (length // 3),
    padding=1,
    **published,
  )
  for resolution, published in _PUBLISHED.items()
  for difficulty, length in DIFFICULTIES.items()
}
