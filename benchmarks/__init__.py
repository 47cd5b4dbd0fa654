"""Measurements side by side with peers: scripts here, figures in results/ with the machine they were measured on."""
