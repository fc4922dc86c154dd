"""placeholder while the page is written"""
import json
from pathlib import Path
def write(directory): 
    return directory/"report.html"
def summary(directory): return []
def objective(directory): return None
def command(a): ...
