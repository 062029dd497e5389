"""A model cut into pipeline stages."""

from dataclasses import replace

from mist.perf.base import Replica
from mist.perf.collective import exchange, fabric, send

WIDTH = 2 * 2.0  # bytes per hidden element sent: activations and residual, 16 bits each


def layer_shares(layers: int, stages: int) -> list[int]:
    """Layers of each stage, as vLLM cuts them.

    What is left over goes one each to the last stages but the very last, which has the head
    (vllm/distributed/utils.py, get_pp_indices).
    """
    shares = [layers // stages] * stages
    for position in range(2, layers % stages + 2):
        shares[-position] += 1
    return shares


def stages(replica: Replica) -> list[Replica]:
    """One replica per stage, each of one stage: its layers, and its part of the engine's overheads.

    The embedding lies in the first stage, the head in the last, and so do scheduling and sampling; what a
    prompt chunk costs beside is spread by layers.
    """
    model, pp = replica.model, replica.pp
    if pp == 1:
        return [replica]
    cut, begin = [], 0
    for number, layers in enumerate(layer_shares(model.layers, pp)):
        end, last = begin + layers, number == pp - 1
        part = replace(
            model,
            name=f"{model.name} (stage {number + 1} of {pp})",
            layers=layers,
            dense_layers=min(max(model.dense_layers - begin, 0), layers),
            window_layers=model.window_layers * end // model.layers - model.window_layers * begin // model.layers,
            linear_layers=model.linear_layers * end // model.layers - model.linear_layers * begin // model.layers,
            kind=model.kind if last else "encoder",  # no head
            tied_embeddings=True,  # one vocabulary matrix, at either end
            vocabulary=model.vocabulary if last or number == 0 else 1,
            pooler=model.pooler and last,
            positions=model.positions if number == 0 else 0,
        )
        engine = replace(
            replica.engine,
            step_overhead=replica.engine.step_overhead if last else 0.0,
            request_overhead=replica.engine.request_overhead if last else 0.0,
            mixed_overhead=replica.engine.mixed_overhead * layers / model.layers,
        )
        cut.append(replica._replace(model=part, engine=engine, pp=1))
        begin = end
    return cut


def hop_time(replica: Replica, tokens: int, stage: int, efficiency: float) -> float:
    """Seconds to send the activations of ``tokens`` from ``stage`` to the next.

    Each of ``tp`` devices sends its part to its peer, and the receivers gather the parts (vLLM
    GroupCoordinator.send_tensor_dict with all_gather_group).
    """
    links, group = fabric(replica, efficiency), replica.group
    payload = -(-tokens // replica.dp) * replica.model.hidden * WIDTH / replica.tp
    across = crosses(replica, stage)
    return send(links, payload, across) + exchange(links, payload * (replica.tp - 1), min(replica.tp, group))


def crosses(replica: Replica, stage: int) -> bool:
    """Whether ``stage`` and the next lie in more than one node, devices being counted through."""
    first, last = stage * replica.group, (stage + 2) * replica.group - 1
    return first // replica.domain != last // replica.domain
