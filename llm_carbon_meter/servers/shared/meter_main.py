"""``python -m llm_carbon_meter.servers.shared.meter_main FD``: the meter of one engine.

Started by meter_process.py. It decodes what the engine's capture took, samples, keeps the ledger
and publishes, and it ends when the engine does, however that ends.
"""

import contextlib
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from llm_carbon_meter.config import cuda_visible_devices
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.meter import EngineMeter, cost_model, open_host, open_power
from llm_carbon_meter.physics.deployed_gpu import gpu_of
from llm_carbon_meter.power.nvml.devices import visible_devices
from llm_carbon_meter.predictor.models import placed
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.servers.shared.channel import Publisher, engine_name
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.shared.steps import StepDecoder


def main() -> None:
    """Serve the engine at the other end of the file descriptor given as the argument."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the engine's end is its end
        signal.signal(number, signal.SIG_IGN)
    with Connection(int(sys.argv[1])) as engine:
        serve(engine)


def serve(engine: "Connection[Any, Any]") -> None:
    """Meter an engine: its `Setup` comes first, then its events, in order, until it hangs up."""
    setup, faults = pickle.loads(engine.recv_bytes()), Faults()  # noqa: S301 - over our own pipe
    decoder = StepDecoder(faults)
    try:
        publisher = Publisher(setup.config.channel_dir, engine_name(setup.engine), faults)
        meter = _meter(setup, decoder, publisher, faults)
        meter.start()
    except MeterError as error:
        with contextlib.suppress(OSError):  # the server has given up for a reason of its own
            engine.send_bytes(pickle.dumps(error))
        return
    with contextlib.suppress(EOFError, OSError):  # closed, or the engine was killed
        engine.send_bytes(pickle.dumps(meter.sensors))
        while True:
            for message in pickle.loads(engine.recv_bytes()):  # noqa: S301 - over our own pipe
                if isinstance(message, str):  # a fault on the engine's side, logged there
                    faults.counts[message] += 1
                else:
                    decoder.feed(message)
    meter.stop()
    publisher.close()


def _meter(setup: Setup, decoder: StepDecoder, publisher: Publisher, faults: Faults) -> EngineMeter:
    """Raises MeterError where the power source cannot be opened."""
    config = setup.config
    gpu = gpu_of(config, setup.deployment, faults).spec

    def devices() -> Sequence[str]:
        return setup.gpus or visible_devices(
            cuda_visible_devices(), setup.first_gpu, setup.num_gpus
        )

    power = open_power(
        config,
        devices,
        setup.num_gpus,
        gpu,
        setup.start_s,
        faults,
        on_cpu=setup.on_cpu,
        engines=setup.engines_here,
    )
    physics = cost_model(gpu, setup.model, setup.tensor_parallel)
    return EngineMeter(
        config,
        power,
        decoder,
        physics,
        setup.engine,
        publisher.publish,
        faults,
        os.getppid(),
        outside=setup.outside,
        deployment=placed(setup.model, gpu, setup.deployment) if setup.model else None,
        host=open_host(config, power, setup.num_gpus, setup.engines_here, faults),
    )


if __name__ == "__main__":
    main()
