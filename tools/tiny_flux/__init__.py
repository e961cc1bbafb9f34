"""Training of the embedded small text-to-image model, from drawn pictures to the weights in
``branchgrpo/assets``.

Run it with ``python -m tools.tiny_flux --out FOLDER``. It is not needed to use the library.
"""
