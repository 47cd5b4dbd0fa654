"""What a run is: recipes chain tasks into a DAG; this package gives it identity, a plan and an executor.

From Python or a notebook: `from pipelines import Pipeline, run; result = run(Pipeline(stage))`.
"""

from pipelines.graph import Pipeline, Registration
from pipelines.session import Request, Result, run

__all__ = ["Pipeline", "Registration", "Request", "Result", "run"]
