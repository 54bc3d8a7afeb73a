import torch

from mae_curriculum.model.hog import hog
from mae_curriculum.report.strokes import draw_strokes


def test_strokes_run_along_edges() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    # a bright half plane, whose edge rises to the right, by 30 degrees
    rising = (x * 0.5 + y * 0.75**0.5).clamp(5.0, 6.0)
    for image, inside, outside in [
        ((x > 3).float(), [(1, 7), (13, 7)], [(7, 1), (7, 13)]),
        (rising, [(10, 2), (4, 12)], [(4, 2), (10, 12)]),
    ]:
        drawn = draw_strokes(hog(image[None, None], (1, 1)), 15)[0, 0]
        assert min(drawn[place] for place in inside) > 0.5
        assert max(drawn[place] for place in outside) < 0.2


def test_cells_are_side_by_side_and_as_bright_as_the_mean_of_the_channels() -> None:
    histograms = torch.zeros(1, 2, 9, 1, 2)
    histograms[0, :, 4, 0, 0] = torch.tensor([1.0, 0.5])
    histograms[0, :, 0, 0, 1] = -1.0
    drawn = draw_strokes(histograms, 15)
    assert drawn.shape == (1, 1, 15, 30)
    assert drawn[..., :15].max() == 0.75
    assert not drawn[..., 15:].any()
