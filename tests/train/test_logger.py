from ginseng.train.logger import GinsengLogger


def test_report_prints_the_last_epoch_or_nothing(capsys):
    logger = GinsengLogger()
    logger.report()
    logger.update(0, 3.0, 2.0, 0.25)
    logger.update(1, 1.5, 1.25, 0.5)
    logger.report(silent=True)
    assert capsys.readouterr().out == ""
    logger.report()
    assert capsys.readouterr().out == "epoch 2: train loss 1.5000, holdout loss 1.2500, holdout accuracy 0.500\n"
    assert (logger.epoch, logger.train_loss) == ([0, 1], [3.0, 1.5])
    assert (logger.holdout_loss, logger.holdout_accuracy) == ([2.0, 1.25], [0.25, 0.5])


def test_without_a_holdout_only_the_training_loss_is_printed(capsys):
    logger = GinsengLogger()
    logger.update(0, 3.0, float("nan"), float("nan"))
    logger.report()
    assert capsys.readouterr().out == "epoch 1: train loss 3.0000\n"


def test_a_table_of_no_epoch():
    assert GinsengLogger().to_frame().shape == (0, 4)
