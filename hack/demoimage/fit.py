"""The demo's program: import a scientific Python stack, fit two models, print one line.

It stands for the usual large image: hundreds of megabytes on disk, of which a start reads a small part.
"""
import sys
import time

began = time.monotonic()

import numpy
import pandas
import scipy
import scipy.optimize
import sklearn
import sklearn.linear_model
import sklearn.pipeline
import sklearn.preprocessing

rng = numpy.random.default_rng(7)
frame = pandas.DataFrame(rng.normal(size=(2000, 8)), columns=list("abcdefgh"))
target = (frame["a"] - 2 * frame["b"] + rng.normal(size=len(frame)) > 0).astype(int)
model = sklearn.pipeline.make_pipeline(
    sklearn.preprocessing.StandardScaler(), sklearn.linear_model.LogisticRegression()
)
score = model.fit(frame, target).score(frame, target)
minimum = scipy.optimize.minimize(lambda x: ((x - 3) ** 2).sum(), numpy.zeros(4))

print(
    f"ready accuracy={score:.3f} minimum={minimum.x.mean():.2f} python={sys.version.split()[0]} "
    f"numpy={numpy.__version__} scipy={scipy.__version__} pandas={pandas.__version__} "
    f"sklearn={sklearn.__version__} seconds={time.monotonic() - began:.2f}",
    flush=True,
)
