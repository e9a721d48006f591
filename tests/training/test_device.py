import pytest
import torch

from dragoman.settings import TrainingSettings
from dragoman.training.device import choose_precision, fast_float32, plan_micro_batches


def find_error():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=random) for _ in range(2))
    exact = a.double() @ b.double()
    return ((a @ b).double() - exact).norm() / exact.norm()


def test_fast_products_are_as_exact_as_float32_and_end_with_the_run():
    before = torch.get_float32_matmul_precision()
    plain = find_error()
    with pytest.raises(KeyError), fast_float32():
        assert find_error() < 2 * plain  # in bf16 it would be a thousand times as large
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_a_precision_that_was_set_is_kept_and_one_that_was_not_has_a_reason():
    assert choose_precision(TrainingSettings(precision="32-true"), "cpu") == ("32-true", "as set")
    precision, why = choose_precision(TrainingSettings(), "cpu")
    assert (precision == "bf16-mixed") == ("bf16" in why and "no bf16" not in why)


def test_only_the_fused_implementation_on_the_processor_has_micro_batches():
    settings = TrainingSettings(accelerator="cpu", batch_tokens=2048)
    assert plan_micro_batches(settings) in (256, 512, 1024)
    assert plan_micro_batches(settings.model_copy(update={"implementation": "reference"})) is None
