"""Everything outside the process: Ray, the artifact store (fsspec), MLflow. Imports no other package here."""
