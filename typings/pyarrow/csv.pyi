# pyarrow's classes are compiled without types; a type checker takes them as they come.
from typing import Any

def __getattr__(name: str) -> Any: ...
