<?php
// Use the clients that openapi-generator has made of a fleet: check.php URL [KEY]
// Guzzle comes from composer (vendor/), or from Debian's php-guzzlehttp-guzzle.

declare(strict_types=1);

use FleetV1\Model\ImageCardJob;
use FleetV1\Model\ImageCardParams;
use FleetV1\Model\JobStatus;

error_reporting(E_ALL);
set_error_handler(static fn (int $level, string $message) => throw new ErrorException($message));
spl_autoload_register(static function (string $class): void {
    [$package, $name] = explode('\\', $class, 2) + [1 => ''];
    $file = __DIR__ . '/' . strtolower(str_replace('FleetV', 'fleet_v', $package)) . '/lib/'
        . str_replace('\\', '/', $name) . '.php';
    if (str_starts_with($package, 'FleetV') && is_file($file)) {
        require $file;
    }
});
require is_file(__DIR__ . '/vendor/autoload.php')
    ? __DIR__ . '/vendor/autoload.php'
    : '/usr/share/php/GuzzleHttp/autoload.php';

function is(bool $true, string $why): void
{
    $true || throw new RuntimeException($why);
}

[, $url, $key] = $argv + [2 => ''];
$v1 = (new FleetV1\Configuration())->setHost($url)->setAccessToken($key);
$v2 = (new FleetV2\Configuration())->setHost($url)->setAccessToken($key);
$http = new GuzzleHttp\Client();
$workflows = new FleetV1\Api\WorkflowsApi($http, $v1);
$jobs = new FleetV1\Api\JobsApi($http, $v1);
$graphs = new FleetV2\Api\JobsApi($http, $v2);
$assets = new FleetV2\Api\AssetsApi($http, $v2);

$ended = static function (string $id) use ($jobs): FleetV1\Model\JobDetail {
    for ($deadline = time() + 60; time() < $deadline; usleep(100_000)) {
        $job = $jobs->getJob($id);
        if ($job->getCompletedAt() !== null) {
            return $job;
        }
    }
    throw new RuntimeException("job $id does not end");
};

// A stored workflow: typed parameters in, a picture out.
$params = new ImageCardParams(['prompt' => 'a paper boat', 'style' => ImageCardParams::STYLE_SILK]);
$made = $workflows->runImageCard(new ImageCardJob(['params' => $params, 'metadata' => ['order' => '4711']]));
$job = $ended($made->getId());
is($job->getStatus() === JobStatus::SUCCEEDED, (string) $job);
is(((array) $job->getMetadata()) === ['order' => '4711'], (string) $job);
is($job->getProgress()->getValue() == 1, (string) $job);
$output = $job->getOutputs()[0];
$picture = $assets->getAssetContent($output->getId());
is($picture->getSize() === $output->getSizeBytes(), 'not the whole picture');
$listed = $jobs->listJobs('succeeded', null, 5)->getJobs();
is(in_array($job->getId(), array_map(static fn ($one) => $one->getId(), $listed), true), 'not in the list');

// A refusal.
try {
    $workflows->runImageCard(new ImageCardJob(['params' => ['prompt' => 'x', 'width' => 1]]));
    is(false, 'width 1 was taken');
} catch (FleetV1\ApiException $refused) {
    is($refused->getCode() === 422, (string) $refused);
    is($refused->getResponseObject()->getError()->getCode() === 'invalid_parameter', (string) $refused);
}

// Graphs and files: an upload, a graph that reads it, and a job that is canceled.
$asset = $assets->createAsset($picture, null, 'face.png', 'image/png', null, null, 'face,input');
is($asset->getFilePath() === 'face.png' && $asset->getTags() === ['face', 'input'], (string) $asset);
$copied = $graphs->createJob(new FleetV2\Model\GraphJobBody(['workflow' => [
    '1' => ['class_type' => 'LoadImage', 'inputs' => ['image' => $asset->getFilePath()]],
    '2' => ['class_type' => 'SaveImage', 'inputs' => ['images' => ['1', 0], 'filename_prefix' => 'copy']],
]]));
is($ended($copied->getId())->getStatus() === JobStatus::SUCCEEDED, 'the copy failed');
$generate = new FleetV1\Api\GenerateApi($http, $v1);
$task = $generate->generate(new FleetV1\Model\GenerateBody(['prompt' => 'never']));
$jobs->cancelJob($task->getTaskId());
is(in_array($ended($task->getTaskId())->getStatus(), [JobStatus::CANCELED, JobStatus::SUCCEEDED], true), 'not canceled');
echo basename(__FILE__), ": the PHP client works\n";
