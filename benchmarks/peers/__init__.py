"""The same DAGs of trivial stages in DVC and in Metaflow, each in the settings that suit it best."""
