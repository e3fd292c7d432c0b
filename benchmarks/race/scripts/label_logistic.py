"""Label test cells by logistic regression on 2,000 variable genes, log-normalised: folder, seed (not used)."""

import sys

from cells import log_normalised, parts, write
from reporting import peak_mib, report
from sklearn.linear_model import LogisticRegression

folder = sys.argv[1]
train, test = parts(folder)
chosen = train.var["variance"].to_numpy()
x, new = (log_normalised(part)[:, chosen].toarray() for part in (train, test))
model = LogisticRegression(max_iter=1000).fit(x, train.obs["cell_type"].astype(str))
probabilities = model.predict_proba(new)
write(folder, model.classes_[probabilities.argmax(axis=1)], probabilities.max(axis=1))
report(cells=train.n_obs, peak_MiB=peak_mib())
