from hydra.plugins.sweeper import Sweeper
class RaceSweeper(Sweeper):
    def __init__(self, params=None): pass
    def setup(self, **kw): pass
    def sweep(self, arguments): pass
