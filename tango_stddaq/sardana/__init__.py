"""What Sardana loads: a controller for its Pool, macros for its MacroServer. See docs/sardana.md."""

from pathlib import Path
from typing import Final

CONTROLLERS: Final = Path(__file__).parent / "controllers"
"""Directory for the Pool's property PoolPath."""
MACROS: Final = Path(__file__).parent / "macros"
"""Directory for the MacroServer's property MacroPath."""
