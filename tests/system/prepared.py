"""Take images in a fresh process and print the compiled loops that were compiled, or loaded, meanwhile.

Arguments: name of the detector, directory for the files.
"""

import sys

from numba.core.dispatcher import Dispatcher

from tango_stddaq.io.preflight import Request
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tests.conftest import EIGER_POSITIONS
from tests.system.programs import wait_until
from tests.system.test_detectors import chain, config_of


def compiled() -> set[str]:
    return {
        f"{where}.{name} {signature}"
        for where, module in list(sys.modules.items())
        if where.startswith("tango_stddaq.") and ".sim." not in where
        for name, loop in vars(module).items()
        if isinstance(loop, Dispatcher)
        for signature in loop.signatures
    }


if __name__ == "__main__":
    config = config_of(sys.argv[1], "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS)
    simulator = SimulatedDetector(config)
    faults = Faults(drop=0.01, dead_modules=frozenset({2}))
    with chain(config) as (driver, _):
        before = compiled()
        driver.begin(Request(sys.argv[2], "run_", 20))
        simulator.run(20, 40, faults=faults)
        assert driver.wait_until_idle(30), driver.status
        assert driver.ledger.complete + driver.ledger.incomplete == 20, driver.status
        wait_until(lambda: driver.acquisition_status == "idle", "all is done")
        sys.stdout.write("\n".join(sorted(compiled() - before)))
