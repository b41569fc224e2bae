import torch

from cahqp.detectors.layers.decoder import anchor_proposals, gather_rows


def test_anchors_are_cell_centres_and_double_from_level_to_level():
    valid = torch.tensor([[[4.0, 2.0], [2.0, 1.0]]])
    anchors, proposed = anchor_proposals([(2, 4), (1, 2)], valid, torch.zeros(1, 10, dtype=torch.bool))
    assert proposed.all()
    torch.testing.assert_close(anchors[0, 5].sigmoid(), torch.tensor([1.5 / 4, 1.5 / 2, 0.05, 0.05]))
    torch.testing.assert_close(anchors[0, 9].sigmoid(), torch.tensor([1.5 / 2, 0.5, 0.1, 0.1]))


def test_anchors_count_from_the_valid_part_and_padding_proposes_nothing():
    padding = torch.tensor([[False, False, True, True]])
    anchors, proposed = anchor_proposals([(1, 4)], torch.tensor([[[2.0, 1.0]]]), padding)
    assert proposed.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(anchors[0, :2, 0].sigmoid(), torch.tensor([0.25, 0.75]))
    assert anchors[0, 2:].isinf().all()


def test_padding_proposes_nothing_wherever_it_is():
    padding = torch.tensor([[False, True, False, False]])
    assert (anchor_proposals([(1, 4)], torch.tensor([[[4.0, 1.0]]]), padding)[1] == ~padding).all()


def test_anchors_at_the_edge_propose_nothing():
    _, proposed = anchor_proposals([(1, 100)], torch.tensor([[[100.0, 1.0]]]), torch.zeros(1, 100, dtype=torch.bool))
    assert proposed[0].nonzero().flatten().tolist() == list(range(1, 99))


def test_rows_are_gathered_per_image():
    x = torch.arange(12.0).view(2, 3, 2)
    assert gather_rows(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
