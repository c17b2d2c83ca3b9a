"""AdamW over what is trained: cores in float32, other parameters through float32 copies, moments in either precision.

Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from osft.config import TrainingConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> Optimizer:
    """Return AdamW with the hyperparameters of ``config``; with ``save_memory`` its moments are bfloat16."""
    parameters = list(parameters)
    arguments: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.save_memory:
        return AdamWithBfloat16Moments(parameters, **arguments)
    # By itself AdamW takes a copy of all trained values on a GPU.
    return AdamW(parameters, **arguments, fused=all(parameter.is_cuda for parameter in parameters))


class AdamWithBfloat16Moments(Optimizer):
    """AdamW whose two moments take 4 bytes a value instead of 8; the arithmetic is float32.

    With a decay of at most 0.99 a moment changes by up to 1% a step, which bfloat16 resolves (1/256).
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """Take over ``params``; the moments are made at the first step."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean = state["exp_avg"].to(gradient.dtype).lerp_(gradient, 1 - beta1)
        state["exp_avg"].copy_(mean)
        mean_square = state["exp_avg_sq"].to(gradient.dtype).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg_sq"].copy_(mean_square)
        denominator = mean_square.div_(1 - beta2 ** state["step"]).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))


class MasterParameters:
    """What the optimizer moves: float32 parameters as they are, and float32 copies of those in less.

    A copy collects the gradient of its parameter over the micro-batches, in float32. Small steps that bfloat16 would
    round away add up in it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the copies, and let each take over its parameter's gradient after every backward pass."""
        self.parameters: list[nn.Parameter] = []
        self._copied: list[tuple[nn.Parameter, nn.Parameter]] = []
        for parameter in parameters:
            if torch.finfo(parameter.dtype).bits >= torch.finfo(torch.float32).bits:
                self.parameters.append(parameter)
                continue
            master = nn.Parameter(parameter.detach().float())
            parameter.register_post_accumulate_grad_hook(_collect_in(master))
            self.parameters.append(master)
            self._copied.append((parameter, master))

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies into their parameters; after the optimizer's step."""
        for parameter, master in self._copied:
            parameter.copy_(master)


def _collect_in(master: nn.Parameter) -> Callable[[Tensor], None]:
    def collect(parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None:
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    return collect
