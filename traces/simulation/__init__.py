"""What a trace would have taken on another device, under another load, in another order.

The engine's own scheduler, over a backend that says what was recorded, under a clock that a cost model puts forward.
"""
