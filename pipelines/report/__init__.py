"""The report of a run: one HTML file that opens offline. `page.render(view)` makes it; `view.py` says from what."""
